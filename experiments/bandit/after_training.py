"""What held-out pairs can do for a run of DPO: keep its best step, or choose how strong the policy is to be.

    python -m experiments.bandit.after_training
    python -m experiments.bandit.after_training --write-page

The runs are those of DPO in `experiments.bandit`, on the same pairs; an eighth as many more are held out, labelled
with the same flips. The bookkeeping is the package's own. A file of results, a line a condition, is gone on with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.bandit.arms import ARMS, CONDITIONS, Condition
from experiments.bandit.comparison import signed_rank_p
from experiments.bandit.training import TrainingConfig, train
from experiments.bandit.world import (
    Array,
    Pairs,
    World,
    WorldConfig,
    draw_pairs,
    draw_world,
    flip_rates,
    log_softmax,
    regret_and_kl,
)

from dynamic_dpo.runs.keep_best import BestSoFar, KeepBest

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).resolve().parent / "after_training.jsonl"
PAGE = ROOT / "docs" / "after_training.md"
BEGIN, END = "<!-- bandit:after-training -->", "<!-- bandit:end -->"
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
PATIENCE = 5
# Evaluations over a run of 800 steps: one after every 20th.
NUM_EVALUATIONS = 40
HELD_OUT_SHARE = 8
COLUMNS = ("last step", "keep_best", f"keep_best, patience {PATIENCE}", "strength")


def held_out_loss(world: World, logps: Array, pairs: Pairs) -> float:
    """Return DPO's loss of a policy, log-probabilities [X, A], on pairs, at the given beta."""
    ratio = logps - world.reference_logps
    margins = ratio[pairs.contexts, pairs.chosen] - ratio[pairs.contexts, pairs.rejected]
    return float(np.logaddexp(0.0, -world.beta_0 * margins).mean())


class _Watched:
    """One seed's run as its evaluations see it: the policy that would be kept, for ever or until patience ends."""

    def __init__(self, world: World, held_out: Pairs) -> None:
        self.world, self.held_out = world, held_out
        self.rules = {None: BestSoFar(KeepBest()), PATIENCE: BestSoFar(KeepBest(patience=PATIENCE))}
        self.kept: dict[int | None, Array] = {}

    def see(self, update: int, logps: Array) -> None:
        loss = held_out_loss(self.world, logps, self.held_out)
        for patience, best in self.rules.items():
            if not best.is_out_of_patience and best.observe(update, loss):
                self.kept[patience] = logps.copy()


def strongest(world: World, logps: Array, held_out: Pairs) -> tuple[float, Array]:
    """Return the strength of the grid with the least held-out loss, and its policy."""
    # The table's weights are logits, and those of the reference are its log-probabilities.
    line = [(c, log_softmax(world.reference_logps + c * (logps - world.reference_logps))) for c in GRID]
    return min(line, key=lambda point: held_out_loss(world, point[1], held_out))


def run_condition(condition: Condition, seeds: Sequence[int], training: TrainingConfig) -> dict[str, Any]:
    """Train DPO on a condition, one policy a seed, and return the regrets by what is kept, one entry a seed."""
    config = WorldConfig()
    worlds = [draw_world(config, seed) for seed in seeds]
    rates = flip_rates(config, condition.noise, heterogeneous=condition.heterogeneous)
    size = condition.num_pairs
    drawn = [
        draw_pairs(world, size + size // HELD_OUT_SHARE, rates, seed)
        for world, seed in zip(worlds, seeds, strict=True)
    ]
    data = [Pairs(*(part[:size] for part in pairs)) for pairs in drawn]
    watched = [
        _Watched(world, Pairs(*(part[size:] for part in pairs)))
        for world, pairs in zip(worlds, drawn, strict=True)
    ]

    def see(update: int, policies: Sequence[Array]) -> None:
        for one, logps in zip(watched, policies, strict=True):
            one.see(update, logps)

    methods = [
        ARMS[0].build(beta_0=config.beta_0, batch_size=training.batch_size, seed=seed) for seed in seeds
    ]
    results = train(methods, worlds, data, seeds, training, on_policies=see)
    found: dict[str, list[float]] = {name: [] for name in (*COLUMNS, "kept step", "steps made", "chosen c")}
    for one, result in zip(watched, results, strict=True):
        strength, between = strongest(one.world, result.policy_logps, one.held_out)
        policies = (result.policy_logps, one.kept[None], one.kept[PATIENCE], between)
        for name, logps in zip(COLUMNS, policies, strict=True):
            found[name].append(float(f"{regret_and_kl(one.world, logps)[0]:.6g}"))
        found["kept step"].append(float(one.rules[None].step or 0))
        found["steps made"].append(float(one.rules[PATIENCE].last_step))
        found["chosen c"].append(strength)
    return {"condition": condition.name, "seeds": list(seeds), "updates": training.num_updates, **found}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the regrets as a table: means over seeds, and on how many seeds each is better than the last step."""

    def cell(line: Mapping[str, Any], name: str) -> str:
        text = f"{np.mean(line[name]):.3f}".lstrip("0")
        if name == COLUMNS[0]:
            return f"{text} ± {np.std(line[name], ddof=1) / len(line[name]) ** 0.5:.3f}"
        differences = np.subtract(line[name], line[COLUMNS[0]])
        return f"{text} ({int((differences < 0).sum())}, p {signed_rank_p(list(differences)):.1g})"

    header = ("condition", *COLUMNS, "kept step", f"steps made, patience {PATIENCE}", "chosen c")
    rows = [
        [
            line["condition"],
            *(cell(line, name) for name in COLUMNS),
            f"{np.median(line['kept step']):.0f}",
            f"{np.median(line['steps made']):.0f}",
            f"{np.median(line['chosen c']):g}",
        ]
        for line in lines
    ]
    parts = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(part)} |" for part in parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bandit.after_training", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RECORD, help="file of results; default: the published one"
    )
    parser.add_argument("--seeds", type=int, default=20, help="seeds a condition; default 20")
    parser.add_argument("--updates", type=int, default=800, help="optimizer steps; default 800")
    parser.add_argument(
        "--conditions", type=int, default=len(CONDITIONS), help="the first so many; default all"
    )
    parser.add_argument(
        "--write-page", action="store_true", help="write the table into docs/after_training.md"
    )
    options = parser.parse_args(arguments)

    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    training = TrainingConfig(num_updates=options.updates, num_points=NUM_EVALUATIONS)
    seeds = list(range(options.seeds))
    lines = (
        [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    )
    known = {
        line["condition"]: line
        for line in lines
        if (line["seeds"], line["updates"]) == (seeds, options.updates)
    }
    shown = []
    for condition in tqdm(CONDITIONS[: options.conditions], unit="condition", disable=None):
        if condition.name not in known:
            known[condition.name] = run_condition(condition, seeds, training)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[condition.name], ensure_ascii=False) + "\n")
        shown.append(known[condition.name])
    print(table(shown))
    if options.write_page:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        _, after = rest.split(END, 1)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(shown)}\n\n{END}{after}", encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
