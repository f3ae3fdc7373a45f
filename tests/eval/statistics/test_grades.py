"""Means of grades: by hand, and in simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from dynamic_dpo.eval.records import GradeRecord
from dynamic_dpo.eval.statistics.grades import model_grades


def graded(model: str, by_prompt: dict[str, tuple[float | None, ...]]) -> list[GradeRecord]:
    return [
        GradeRecord(f"{model}{id_}{turn}", id_, turn, "judge", model, grade)
        for id_, grades in by_prompt.items()
        for turn, grade in enumerate(grades)
    ]


NEW = graded("new", {"p1": (8.0, 6.0), "p2": (10.0, 4.0), "p3": (7.0, None)})
OLD = graded("old", {"p1": (5.0, 5.0), "p2": (9.0, 5.0), "p3": (None, 2.0)})
KINDS = {"p1": "math", "p2": "math", "p3": "writing"}


def test_means_are_those_of_all_grades_of_a_turn_and_of_a_category() -> None:
    new, old = model_grades(OLD + NEW, categories=KINDS, baseline="old")
    assert (new.model, old.model) == ("new", "old")
    assert (new.overall.mean, new.overall.num_grades, new.num_invalid) == (7.0, 5, 1)
    assert [turn.mean for turn in new.by_turn] == [pytest.approx(25 / 3), 5.0]
    assert {kind: found.mean for kind, found in new.by_category.items()} == {"math": 7.0, "writing": 7.0}
    assert old.overall.mean == pytest.approx(26 / 5)
    # On p1 3 and 1, on p2 1 and -1; p3 has no turn that both have a grade for.
    assert new.difference is not None
    assert (new.difference.mean, new.difference.num_grades) == (1.0, 4)
    assert old.difference is None


def test_the_order_of_grades_changes_nothing_and_the_first_of_a_question_counts() -> None:
    assert model_grades(NEW + OLD) == model_grades((NEW + OLD)[::-1])
    assert model_grades(NEW + NEW) == model_grades(NEW)


def test_what_has_no_grade_has_no_mean() -> None:
    good, none = model_grades([*NEW, *graded("mute", {"p1": (None, None)})], categories={"p1": "math"})
    assert (good.model, none.model, none.num_invalid) == ("new", "mute", 2)
    assert math.isnan(none.overall.mean)
    assert math.isnan(none.by_category["math"].interval.low)


@pytest.mark.parametrize(("num_prompts", "runs"), [(10, 1000), (80, 600)])
def test_intervals_hold_the_mean_that_the_prompts_were_drawn_from(num_prompts: int, runs: int) -> None:
    # Prompts differ, and their two turns resemble each other.
    held = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        ease = rng.normal(6.0, 1.5, num_prompts)
        records = [
            GradeRecord(f"{n}/{turn}", f"p{n}", turn, "judge", "m", float(ease[n] + rng.normal(0, 1)))
            for n, turn in product(range(num_prompts), range(2))
        ]
        low, high = model_grades(records, num_resamples=400, seed=seed)[0].overall.interval
        held += low <= 6.0 <= high
    assert 0.93 <= held / runs <= 0.97


def test_a_single_prompt_gives_no_interval() -> None:
    (one,) = model_grades(graded("new", {"p1": (8.0, 6.0)}))
    assert one.overall.mean == 7.0
    assert math.isnan(one.overall.interval.low)
