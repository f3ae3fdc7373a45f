"""A radar of grades by category: one axis a category, one line a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from dynamic_dpo.eval.judges.turns.grades import HIGHEST, LOWEST
from dynamic_dpo.pages.environment import macro

WIDTH, HEIGHT, RADIUS = 520, 400, 150
RINGS = (2.5, 5.0, 7.5, 10.0)
FEWEST_AXES = 3
KINDS = ("s0", "s1", "s2", "s3")
"""Classes of the style sheet for the lines; further models share the last look."""

_drawing = partial(macro, "figures.html")


class _Ring(NamedTuple):
    points: str
    x: float
    y: float
    text: str


class _Spoke(NamedTuple):
    from_x: float
    from_y: float
    x: float
    y: float
    text_x: float
    text_y: float
    anchor: str
    text: str


class _Shape(NamedTuple):
    kind: str
    points: str


def radar(by_model: Mapping[str, Sequence[float]], categories: Sequence[str], *, label: str) -> Markup:
    """Draw one closed line for every model, the grade's scale from the middle outwards.

    Args:
        by_model: Model to its mean grade in each category; a NaN is drawn in the middle.
        categories: The axes, clockwise from the top; at least `FEWEST_AXES`.
        label: What a screen reader says.
    """

    def at(axis: int, value: float, reach: float = 1.0) -> tuple[float, float]:
        share = 0.0 if math.isnan(value) else (value - LOWEST) / (HIGHEST - LOWEST)
        angle = 2 * math.pi * axis / len(categories) - math.pi / 2
        x = WIDTH / 2 + reach * RADIUS * share * math.cos(angle)
        y = HEIGHT / 2 + reach * RADIUS * share * math.sin(angle)
        return round(x, 1), round(y, 1)

    def around(values: Sequence[float]) -> str:
        return " ".join("{},{}".format(*at(axis, value)) for axis, value in enumerate(values))

    middle = at(0, LOWEST)
    spokes = []
    for axis, category in enumerate(categories):
        x, y = at(axis, HIGHEST, 1.1)
        beside = x - WIDTH / 2
        anchor = "middle" if abs(beside) < 8 else "start" if beside > 0 else "end"
        spokes.append(_Spoke(*middle, *at(axis, HIGHEST), x, y + 4, anchor, category))
    rings = []
    for value in RINGS:
        x, y = at(0, value)
        rings.append(_Ring(around([value] * len(categories)), x - 5, y + 4, f"{value:g}"))
    shapes = [
        _Shape(KINDS[min(number, len(KINDS) - 1)], around(values))
        for number, values in enumerate(by_model.values())
    ]
    return _drawing("radar")(WIDTH, HEIGHT, rings, spokes, shapes, label)
