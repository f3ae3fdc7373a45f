"""The pictures of an evaluation page as inline SVG: intervals, shares, box plots and the frontier.

Positions are percentages, so that a picture fills whatever width it has and its text keeps its size; colours come
from the page's style sheet and follow its light or dark theme. What is drawn is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dynamic_dpo.eval.scoring.metrics import FrontierPoint
from dynamic_dpo.eval.statistics.resampling import Interval

ROW_HEIGHT = 30
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 640, 300, 46


def interval_bar(
    value: float,
    interval: Interval,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    reference: float | None = 0.5,
    second: tuple[float, Interval] | None = None,
    label: str,
) -> str:
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
        share = (x - scale[0]) / (scale[1] - scale[0])
        # 1 % is left at both edges, so that a point at the end of the scale is whole.
        return f"{1 + 98 * min(max(share, 0.0), 1.0):.2f}%"

    height = ROW_HEIGHT if second is None else ROW_HEIGHT + 12
    parts = [f'<line class="axis" x1="1%" x2="99%" y1="{height - 1}" y2="{height - 1}"/>']
    if reference is not None:
        parts.append(f'<line class="ref" x1="{at(reference)}" x2="{at(reference)}" y1="0" y2="{height}"/>')
    rows = [(value, interval, "main", 14)]
    if second is not None:
        rows.append((*second, "second", 30))
    for point, (low, high), kind, y in rows:
        if math.isnan(point):
            continue
        parts.append(f'<line class="ci {kind}" x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {kind}" cx="{at(point)}" cy="{y}" r="5"/>')
    return _svg("bar", height, parts, label)


def share_bar(shares: Sequence[tuple[str, float]], *, label: str) -> str:
    """Draw parts of a whole side by side.

    Args:
        shares: Class of the style sheet and share of each part; together 1.
        label: What a screen reader says.
    """
    parts, left = [], 0.0
    for kind, share in shares:
        parts.append(
            f'<rect class="{kind}" x="{100 * left:.2f}%" y="6" width="{100 * share:.2f}%" height="18"/>'
        )
        left += share
    return _svg("bar", ROW_HEIGHT, parts, label)


def box_plot(
    numbers: tuple[float, float, float, float, float], mean: float, *, largest: float, label: str
) -> str:
    """Draw the smallest number, the quartiles, the largest and the mean, on a scale from 0 to ``largest``."""

    def at(x: float) -> str:
        return f"{1 + 98 * x / max(largest, 1.0):.2f}%"

    low, lower, middle, upper, high = numbers
    width = 98 * (upper - lower) / max(largest, 1.0)
    parts = [
        f'<line class="whisker" x1="{at(low)}" x2="{at(high)}" y1="15" y2="15"/>',
        f'<rect class="box" x="{at(lower)}" y="6" width="{width:.2f}%" height="18"/>',
        f'<line class="median" x1="{at(middle)}" x2="{at(middle)}" y1="5" y2="25"/>',
        f'<circle class="dot second" cx="{at(mean)}" cy="15" r="4"/>',
    ]
    return _svg("bar", ROW_HEIGHT, parts, label)


def frontier_plot(points: Sequence[FrontierPoint]) -> str:
    """Draw checkpoints on the plane of KL and reward, the efficient ones filled and joined.

    Args:
        points: In the order of KL, as `reward_kl_frontier` gives them; at least one.
    """
    xs = _ticks([point.kl for point in points])
    ys = _ticks([point.reward for point in points])

    def at(kl: float, reward: float) -> tuple[float, float]:
        x = MARGIN + (kl - xs[0]) / (xs[-1] - xs[0]) * (PLOT_WIDTH - 2 * MARGIN)
        y = PLOT_HEIGHT - MARGIN - (reward - ys[0]) / (ys[-1] - ys[0]) * (PLOT_HEIGHT - 2 * MARGIN)
        return round(x, 1), round(y, 1)

    parts = []
    for tick in xs:
        x, y = at(tick, ys[0])
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{tick:.4g}</text>')
    for tick in ys:
        x, y = at(xs[0], tick)
        parts.append(f'<line class="axis" x1="{x}" x2="{PLOT_WIDTH - MARGIN}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{tick:.4g}</text>')
    line = " ".join("{},{}".format(*at(p.kl, p.reward)) for p in points if p.is_efficient)
    parts.append(f'<polyline class="frontier" points="{line}"/>')
    for point in points:
        x, y = at(point.kl, point.reward)
        kind = "main" if point.is_efficient else "second"
        # A name at the right edge is written to the left of its point, so that it is not cut.
        side = f'x="{x - 9}" text-anchor="end"' if x > PLOT_WIDTH * 0.75 else f'x="{x + 9}"'
        parts.append(f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="5"/>')
        parts.append(f'<text {side} y="{y - 8}">{escape(point.name)}</text>')
    middle = PLOT_WIDTH / 2
    parts.append(
        f'<text x="{middle}" y="{PLOT_HEIGHT - 6}" text-anchor="middle">KL to the reference (nats)</text>'
    )
    parts.append(f'<text x="{MARGIN}" y="{MARGIN / 2}" text-anchor="middle">reward</text>')
    return (
        f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" '
        f'aria-label="Reward over KL of {len(points)} checkpoints">{"".join(parts)}</svg>'
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Return four to seven round numbers around the values.

    >>> _ticks([0.42, 0.61])
    [0.4, 0.45, 0.5, 0.55, 0.6, 0.65]
    """
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(spread / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _svg(kind: str, height: int, parts: Sequence[str], label: str) -> str:
    return f'<svg class="{kind}" height="{height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
