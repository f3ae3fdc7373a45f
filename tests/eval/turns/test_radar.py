from __future__ import annotations

import math
import re

from dynamic_dpo.eval.turns.radar import HEIGHT, RADIUS, WIDTH, radar

CATEGORIES = ("top", "right", "bottom", "left")


def points_of(drawn: str, kind: str) -> list[tuple[float, float]]:
    found = re.search(rf'class="radar {kind}" points="([^"]+)"', drawn)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_grade_lies_on_its_axis_as_far_out_as_it_is_high() -> None:
    drawn = str(radar({"m": [10.0, 5.5, 1.0, math.nan]}, CATEGORIES, label="Grades"))
    middle = (WIDTH / 2, HEIGHT / 2)
    assert points_of(drawn, "s0") == [
        (middle[0], middle[1] - RADIUS),
        (middle[0] + RADIUS / 2, middle[1]),
        middle,
        middle,
    ]


def test_every_model_has_a_line_and_every_category_a_name_shown_as_text() -> None:
    by_model = {f"m{n}": [5.0] * 4 for n in range(6)}
    drawn = str(radar(by_model, ("<b>", *CATEGORIES[1:]), label='"quoted"'))
    assert drawn.count('<polygon class="radar') == 6
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
