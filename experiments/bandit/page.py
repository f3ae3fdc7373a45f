"""The published page: tables made from results, put between the markers of docs/results.md beside pictures.

What the figures mean is said by hand around the markers; nothing between them is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from experiments.bandit.arms import BEST, CONTROL, GIVEN
from experiments.bandit.comparison import Difference, Results, compare
from experiments.bandit.pictures import draw_betas, draw_regrets
from experiments.bandit.world import draw_world, measure, optimal_logps
from experiments.pages import p_text, replace_block, table

from dynamic_dpo.utils.files import write_text

Differences = Mapping[tuple[str, str, str], Difference]
SIGNIFICANT = 0.05
BETTER, WORSE = "▼", "▲"


def write_page(results: Results, short_memory: Results, docs: Path) -> list[Path]:
    """Write pictures, and the tables into the page, and return the files written.

    Args:
        results: The finished experiment.
        short_memory: The second look, of `short_memory_plan`.
        docs: Folder of ``results.md``, which has the markers ``<!-- bandit:NAME -->`` and ``<!-- bandit:end -->``.

    Raises:
        ValueError: If a marker is missing.
    """
    page = docs / "results.md"
    text = page.read_text(encoding="utf-8")
    differences = compare(results)
    for name, block in {
        "setting": setting_lines(results),
        "summary": summary_table(results, differences),
        "full": full_tables(results, differences),
        "memory": summary_table(short_memory, compare(short_memory)),
    }.items():
        text = replace_block(text, f"bandit:{name}", block)
    pictures = docs / "images"
    return [
        write_text(page, text),
        draw_regrets(results, pictures / "bandit-regret.png"),
        draw_betas(results, pictures / "bandit-beta.png"),
    ]


def setting_lines(results: Results) -> str:
    """Return what was run, and what the optimum and the reference are worth, averaged over the worlds."""
    plan, world = results.plan, results.plan.world
    worlds = [draw_world(world, seed) for seed in range(plan.num_seeds)]
    best = np.mean([measure(one, optimal_logps(one)) for one in worlds], axis=0)
    start = np.mean([measure(one, one.reference_logps) for one in worlds], axis=0)
    ceiling = np.mean([measure(one, optimal_logps(one))[2] for one in worlds])
    grid = ", ".join(f"{factor * world.beta_0:g}" for factor in plan.beta_grid)
    return "\n".join(
        [
            f"- {world.num_contexts} contexts, {world.num_actions} actions, beta_0 = {world.beta_0:g}; rewards of "
            f"standard deviation {world.reward_scale:g}, reference logits of {world.reference_scale:g}.",
            f"- {plan.num_seeds} seeds for the comparison, {plan.num_tuning_seeds} others to choose DPO's best beta "
            f"from {grid}, condition by condition.",
            f"- {plan.training.num_updates} steps of {plan.training.batch_size} pairs, Adam with learning rate "
            f"{plan.training.learning_rate:g}; one controller update a step.",
            f"- The reference has regret {start[0]:.3f}. The optimum has regret 0, KL {best[1]:.2f} nats and agrees "
            f"with {100 * ceiling:.1f} % of clean labels, more than which nothing can.",
        ]
    )


def summary_table(results: Results, differences: Differences) -> str:
    """Return mean regrets, arms by conditions, with marks where an arm differs from DPO at the given beta."""
    conditions = list(results.lines)
    rows = []
    for arm in results.lines[conditions[0]]:
        cells = []
        for condition in conditions:
            mean = f"{np.mean(results.lines[condition][arm]['regret']):.3f}"
            cells.append(mean + _mark(differences.get((condition, arm, GIVEN))))
        rows.append([arm, *cells])
    stopped = [stopped_early(results, condition) for condition in conditions]
    rows += [
        ["*DPO, stopped early*", *(f"*{regret:.3f}*" for _, regret in stopped)],
        ["*at step*", *(f"*{step}*" for step, _ in stopped)],
        ["*DPO's best beta*", *(f"*{results.best_betas[condition]:g}*" for condition in conditions)],
    ]
    return table(["Mean regret", *conditions], rows)


def stopped_early(results: Results, condition: str) -> tuple[int, float]:
    """Return the step at which to stop DPO at the given beta, chosen on the tuning seeds, and its regret there.

    Where no tuning seed was trained at the given beta, the step is the last.
    """
    line = results.lines[condition][GIVEN]
    tuned = results.tuning[condition].get(results.plan.world.beta_0)
    point = int(np.argmin(tuned["mean_regret"])) if tuned else -1
    return line["updates"][point], line["mean_regret"][point]


def full_tables(results: Results, differences: Differences) -> str:
    """Return one table per condition: every measure, and the three comparisons of every arm."""
    parts = []
    for condition, by_arm in results.lines.items():
        rows = []
        for arm, line in by_arm.items():
            regret = np.array(line["regret"])
            error = regret.std(ddof=1) / len(regret) ** 0.5
            rows.append(
                [
                    arm,
                    f"{regret.mean():.4f} ± {error:.4f}",
                    *(
                        _difference(differences.get((condition, arm, other)))
                        for other in (GIVEN, BEST, CONTROL)
                    ),
                    f"{np.mean(line['kl']):.3f}",
                    f"{100 * np.mean(line['accuracy']):.2f}",
                    f"{np.mean(line['last_beta']):.3g}",
                ]
            )
        head = ["Arm", "Regret", *(f"Against {other}" for other in (GIVEN, BEST, CONTROL)), "KL", "Accuracy"]
        parts.append(f"### {condition}\n\n{table([*head, 'Last beta'], rows)}")
    return "\n\n".join(parts)


def _mark(difference: Difference | None) -> str:
    if difference is None or difference.p_value >= SIGNIFICANT:
        return ""
    return f" {BETTER}" if difference.mean < 0 else f" {WORSE}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    mean = f"{difference.mean:+.4f}".replace("-", "−")
    return f"{mean} ({difference.num_better}, {p_text(difference.p_value)})"
