"""The pictures of an evaluation page as inline SVG: intervals, shares, box plots and the frontier.

Computed here, drawn by ``figures.html`` of the page kit. Positions are percentages, so that a picture fills whatever
width it has and its text keeps its size; colours come from the page's style sheet and follow its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from dynamic_dpo.eval.scoring.metrics import FrontierPoint
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.pages.environment import macro

ROW_HEIGHT = 30
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 640, 300, 46

_drawing = partial(macro, "figures.html")


class _IntervalMark(NamedTuple):
    kind: str
    y: int
    low: str
    point: str
    high: str


class _SharePart(NamedTuple):
    kind: str
    left: str
    width: str


class _Box(NamedTuple):
    low: str
    lower: str
    width: str
    median: str
    high: str
    mean: str


class _PlotMark(NamedTuple):
    x: float
    y: float
    text: str
    kind: str = ""


def interval_bar(
    value: float,
    interval: Interval,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    reference: float | None = 0.5,
    second: tuple[float, Interval] | None = None,
    label: str,
) -> Markup:
    """Draw a point with its interval on a scale.

    Args:
        value: The point; no point is drawn where it is NaN.
        interval: The interval.
        scale: Values at the left and right edge.
        reference: Where to draw the line of "no difference".
        second: A further point and interval, drawn hollow below the first.
        label: What a screen reader says.
    """

    def at(x: float) -> str:
        return _percent((x - scale[0]) / (scale[1] - scale[0]))

    drawn = [("main", 14, value, interval)]
    if second is not None:
        drawn.append(("second", 30, *second))
    marks = [
        _IntervalMark(kind, y, at(ends.low), at(point), at(ends.high))
        for kind, y, point, ends in drawn
        if not math.isnan(point)
    ]
    height = ROW_HEIGHT if second is None else ROW_HEIGHT + 12
    return _drawing("interval_bar")(height, None if reference is None else at(reference), marks, label)


def share_bar(shares: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """Draw parts of a whole side by side.

    Args:
        shares: Class of the style sheet and share of each part; together 1.
        label: What a screen reader says.
    """
    parts, left = [], 0.0
    for kind, share in shares:
        parts.append(_SharePart(kind, f"{100 * left:.2f}%", f"{100 * share:.2f}%"))
        left += share
    return _drawing("share_bar")(ROW_HEIGHT, parts, label)


def box_plot(
    numbers: tuple[float, float, float, float, float], mean: float, *, largest: float, label: str
) -> Markup:
    """Draw the smallest number, the quartiles, the largest and the mean, on a scale from 0 to ``largest``."""
    scale = max(largest, 1.0)
    low, lower, median, upper, high = (number / scale for number in numbers)
    box = _Box(
        low=_percent(low),
        lower=_percent(lower),
        width=f"{98 * (upper - lower):.2f}%",
        median=_percent(median),
        high=_percent(high),
        mean=_percent(mean / scale),
    )
    return _drawing("box_plot")(ROW_HEIGHT, box, label)


def frontier_plot(
    points: Sequence[FrontierPoint],
    x_name: str = "KL to the reference (nats)",
    y_name: str = "reward",
) -> Markup:
    """Draw checkpoints on the plane of KL and reward, the efficient ones filled and joined.

    Args:
        points: In the order of KL, as `reward_kl_frontier` gives them; at least one.
        x_name: What the KL is called.
        y_name: What the reward is.
    """
    xs = round_ticks([point.kl for point in points])
    ys = round_ticks([point.reward for point in points])

    def at(kl: float, reward: float) -> tuple[float, float]:
        x = MARGIN + (kl - xs[0]) / (xs[-1] - xs[0]) * (PLOT_WIDTH - 2 * MARGIN)
        y = PLOT_HEIGHT - MARGIN - (reward - ys[0]) / (ys[-1] - ys[0]) * (PLOT_HEIGHT - 2 * MARGIN)
        return round(x, 1), round(y, 1)

    return _drawing("frontier_plot")(
        PLOT_WIDTH,
        PLOT_HEIGHT,
        MARGIN,
        [_PlotMark(*at(tick, ys[0]), f"{tick:.4g}") for tick in xs],
        [_PlotMark(*at(xs[0], tick), f"{tick:.4g}") for tick in ys],
        " ".join("{},{}".format(*at(point.kl, point.reward)) for point in points if point.is_efficient),
        [
            _PlotMark(
                *at(point.kl, point.reward), point.name, kind="main" if point.is_efficient else "second"
            )
            for point in points
        ],
        x_name,
        y_name,
    )


def _percent(share: float) -> str:
    """Return where a share of the width lies; 1 % is left at both edges, so that a point there is whole."""
    return f"{1 + 98 * min(max(share, 0.0), 1.0):.2f}%"


def round_ticks(values: Sequence[float]) -> list[float]:
    """Return four to seven round numbers around the values.

    >>> round_ticks([0.42, 0.61])
    [0.4, 0.45, 0.5, 0.55, 0.6, 0.65]
    """
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(spread / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
