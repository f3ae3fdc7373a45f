"""The pictures of the lab: betas side by side. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.lab.replaying import Replay
from dynamic_dpo.lab.results import Simulation
from dynamic_dpo.runs.plots import BLUE, GREEN, GREY, INK, ORANGE

# Okabe and Ito's other colours, after those of the run's own pictures.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
SIZE_INCHES, DPI = (9.0, 4.2), 160


def draw_simulation(result: Simulation, path: str | Path) -> Path:
    """Write a picture of beta over the updates of a simulation, median and middle 80 % of chains.

    Args:
        result: The simulation.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.

    Returns:
        The file written.

    Raises:
        ConfigError: If matplotlib is not installed, or draws no such files.
    """
    modes = list(dict.fromkeys(row.mode for row in result.rows))
    sizes = list(dict.fromkeys(row.n for row in result.rows))

    def draw(axes: Any) -> None:
        for row, (name, trace) in zip(result.rows, result.traces.items(), strict=True):
            colour = COLOURS[modes.index(row.mode) % len(COLOURS)]
            style = STYLES[sizes.index(row.n) % len(STYLES)]
            low, median, high = (
                [math.exp(x) for x in part] for part in (trace.low, trace.median, trace.high)
            )
            axes.fill_between(trace.updates, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(trace.updates, median, color=colour, linestyle=style, linewidth=1.8, label=name)
        if result.scenario.changes:
            axes.axvline(result.scenario.at, color=GREY, linewidth=1.2)
        axes.set_title(f"{result.law}: {result.scenario.describe()}", color=INK, fontsize=10)

    return _write(path, draw)


def draw_replay(result: Replay, path: str | Path) -> Path:
    """Write a picture of the betas of a replay; see `draw_simulation`."""

    def draw(axes: Any) -> None:
        updates = range(1, len(result.sizes) + 1)
        if result.logged:
            axes.plot(updates, result.logged, color=GREY, linewidth=5, label="logged by the run")
        for number, trace in enumerate(result.traces):
            axes.plot(
                updates,
                trace.betas,
                color=COLOURS[number % len(COLOURS)],
                linestyle=STYLES[number // len(COLOURS) % len(STYLES)],
                linewidth=1.6,
                label=trace.name,
            )

    return _write(path, draw)


def _write(path: str | Path, draw: Callable[[Any], None]) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install 'dynamic-dpo[report]'") from error
    target = Path(path)
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"a picture is a .png, .svg or .pdf file, got {path}")
    # Not pyplot: this must not touch the figures or the backend of the program that asks for it.
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_yscale("log")
    axes.set_xlabel("controller update", color=INK)
    axes.set_ylabel("beta", color=INK)
    axes.grid(axis="y", color=GREY, alpha=0.45, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, facecolor="white")
    return target
