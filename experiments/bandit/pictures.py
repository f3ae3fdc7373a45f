"""The pictures of the experiment. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from experiments.bandit.arms import BEST, CONTROL, GIVEN
from experiments.bandit.comparison import Results

from dynamic_dpo.runs.plots import BLUE, GREEN, GREY, INK, ORANGE

# Okabe and Ito's other colours, after those of the runs' own pictures.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
YARDSTICKS = (GIVEN, BEST, CONTROL)
DPI = 150


def draw_regrets(results: Results, path: Path) -> Path:
    """Write each arm's regret less that of DPO at the given beta, in per cent of it, by condition."""
    plt = pyplot()
    conditions = list(results.lines)
    arms = [arm for arm in results.lines[conditions[0]] if arm != GIVEN]
    relative = np.array(
        [
            [
                100
                * (np.mean(results.lines[c][arm]["regret"]) / np.mean(results.lines[c][GIVEN]["regret"]) - 1)
                for c in conditions
            ]
            for arm in arms
        ]
    )
    figure, axes = plt.subplots(figsize=(10.5, 6.2), layout="constrained")
    image = axes.imshow(relative, cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto")
    for (row, column), value in np.ndenumerate(relative):
        colour = "white" if abs(value) > 40 else INK
        axes.text(column, row, f"{value:+.0f} %", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(
        range(len(conditions)), [name.replace(", ", ",\n").replace(" in ", "\nin ") for name in conditions]
    )
    axes.set_yticks(range(len(arms)), arms)
    axes.tick_params(labelsize=9, length=0)
    axes.set_title("Regret against DPO at the given beta (blue: less)", color=INK, fontsize=11)
    figure.colorbar(image, ax=axes, label="%", shrink=0.6, extend="both")
    return write_figure(figure, path)


def draw_betas(results: Results, path: Path) -> Path:
    """Write beta (median of seeds) and regret (mean) over training, on the cleanest and the noisiest labels."""
    plt = pyplot()
    plain = [condition for condition in results.plan.conditions if not condition.heterogeneous]
    noisiest = max(plain, key=lambda condition: condition.noise)
    cleanest = min(
        (condition for condition in plain if condition.num_pairs == noisiest.num_pairs),
        key=lambda condition: condition.noise,
    )
    conditions = list(dict.fromkeys((cleanest.name, noisiest.name)))
    controllers = [
        arm.name for arm in results.plan.arms if arm.method in ("risk", "schedule", "beta_dpo", "epsilon_dpo")
    ]
    figure, grid = plt.subplots(
        2, len(conditions), figsize=(10.5, 7.0), sharex=True, squeeze=False, layout="constrained"
    )
    for (above, below), condition in zip(grid.T, conditions, strict=True):
        by_arm = results.lines[condition]
        for arm, style in ((GIVEN, "-"), (BEST, "--")):
            line = by_arm[arm]
            for axes, values in ((above, line["median_beta"]), (below, line["mean_regret"])):
                axes.plot(line["updates"], values, color=GREY, linestyle=style, linewidth=3, label=arm)
        for number, arm in enumerate(controllers):
            line, colour = by_arm[arm], COLOURS[number % len(COLOURS)]
            style = "-" if number < len(COLOURS) else ":"
            for axes, values in ((above, line["median_beta"]), (below, line["mean_regret"])):
                axes.plot(line["updates"], values, color=colour, linestyle=style, linewidth=1.5, label=arm)
        above.set(title=condition, yscale="log", ylabel="beta")
        below.set(xlabel="steps", ylabel="regret")
    grid[0, 0].legend(fontsize=8, frameon=False)
    return write_figure(figure, path)


def pyplot() -> Any:
    """Return matplotlib's drawing, for files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def write_figure(figure: Any, path: Path) -> Path:
    """Write a figure to a file, close it and return the file."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    # No date or version in the file: the same results give the same picture.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return path
