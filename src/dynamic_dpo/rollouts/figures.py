"""The pictures of a rollout's page: histograms as inline SVG, drawn by ``histogram.html`` of the page kit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import round_ticks
from dynamic_dpo.pages.environment import macro

WIDTH, HEIGHT, MARGIN, NUM_BINS = 640, 170, 28, 24

_drawing = partial(macro, "histogram.html")


class _Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    text: str


class _Tick(NamedTuple):
    x: float
    text: str


def histogram(values: Sequence[float], *, label: str, unit: str = "") -> Markup:
    """Draw how often values occur, in bins of one width; a dashed line stands at 0 where that is among them.

    Args:
        values: At least one.
        label: What a screen reader says.
        unit: What the values are counted in.
    """
    ticks = round_ticks(values)
    low, high = ticks[0], ticks[-1]
    counts = binned(values, low, high)
    width = (WIDTH - 2 * MARGIN) / NUM_BINS
    bars = []
    for number, count in enumerate(counts):
        if count:
            height = count / max(counts) * (HEIGHT - MARGIN - 8)
            start, end = (low + (high - low) * n / NUM_BINS for n in (number, number + 1))
            text = f"{start:.4g} to {end:.4g}{unit}: {count:,}"
            x, y = MARGIN + number * width + 1, HEIGHT - MARGIN - height
            bars.append(_Bar(round(x, 2), round(y, 2), round(width - 2, 2), round(height, 2), text))

    def at(value: float) -> float:
        return round(MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN), 2)

    marks = [_Tick(at(tick), f"{tick:.4g}") for tick in ticks]
    zero = at(0.0) if low < 0 < high else None
    return _drawing("histogram")(WIDTH, HEIGHT, MARGIN, bars, marks, zero, label)


def binned(values: Sequence[float], low: float, high: float) -> list[int]:
    """Count values in `NUM_BINS` bins of one width between two numbers; the upper end belongs to the last.

    >>> counts = binned([0.0, 0.01, 1.0], 0.0, 1.0)
    >>> counts[0], counts[-1], sum(counts)
    (2, 1, 3)
    """
    counts = [0] * NUM_BINS
    for value in values:
        place = int((value - low) / (high - low) * NUM_BINS)
        counts[min(max(place, 0), NUM_BINS - 1)] += 1
    return counts
