"""Grades of single answers: means by model, turn and category, with intervals over prompts.

A prompt's turns belong together, and are resampled together. Answers without a grade are left out and counted, as in
MT-Bench's own tables (Zheng et al. 2023, arXiv:2306.05685).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynamic_dpo.eval.records import GradeRecord
from dynamic_dpo.eval.statistics.resampling import (
    Array,
    Interval,
    check_settings,
    percentile_interval,
    resample,
    widened_interval,
)


@dataclass(frozen=True)
class GradeMean:
    """The mean of some grades.

    Attributes:
        mean: Over all grades; NaN without one.
        interval: By resampling prompts, widened as Student's t is; NaN with fewer than two prompts. It may reach
            beyond the scale, whose ends it does not know.
        num_grades: Grades.
    """

    mean: float
    interval: Interval
    num_grades: int


@dataclass(frozen=True)
class ModelGrades:
    """What one model was graded.

    Attributes:
        model: The model.
        overall: Over all turns.
        by_turn: Of each turn, from the first.
        by_category: Of each category, over all turns; prompts without one are left out.
        num_invalid: Answers without a grade.
        difference: Mean of the prompts' differences to the baseline, on the turns that both have a grade for;
            ``None`` for the baseline itself.
    """

    model: str
    overall: GradeMean
    by_turn: tuple[GradeMean, ...]
    by_category: dict[str, GradeMean]
    num_invalid: int
    difference: GradeMean | None


def model_grades(
    grades: Sequence[GradeRecord],
    *,
    categories: Mapping[str, str | None] | None = None,
    baseline: str | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[ModelGrades]:
    """Compute the means of every model.

    Args:
        grades: Of one judge.
        categories: Prompt id to category.
        baseline: The model that the others are compared with.
        confidence: Of the intervals.
        num_resamples: Bootstrap resamples of prompts.
        seed: Seed of the bootstrap.

    Returns:
        The best first.

    Raises:
        ConfigError: If a setting gives no interval.

    Example:
        >>> records = [GradeRecord("1", "p", 0, "j", "m", 8.0), GradeRecord("2", "p", 1, "j", "m", 6.0)]
        >>> found = model_grades(records)[0]
        >>> found.overall.mean, [turn.mean for turn in found.by_turn]
        (7.0, [8.0, 6.0])
    """
    check_settings(confidence=confidence, num_resamples=num_resamples)
    by_model: dict[str, dict[tuple[str, int], float | None]] = {}
    for record in sorted(grades, key=lambda record: (record.model, record.id, record.turn, record.key)):
        by_model.setdefault(record.model, {}).setdefault((record.id, record.turn), record.grade)
    named = categories or {}
    kinds = sorted({kind for id_ in {record.id for record in grades} if (kind := named.get(id_)) is not None})

    def mean(values: Mapping[tuple[str, int], float]) -> GradeMean:
        return _mean(values, confidence, num_resamples, seed)

    found = []
    for model, given in by_model.items():
        valid = {place: grade for place, grade in given.items() if grade is not None}
        num_turns = 1 + max(turn for _, turn in given)

        def some(keep: Callable[[str, int], bool], valid: dict[tuple[str, int], float] = valid) -> GradeMean:
            return mean({(id_, turn): grade for (id_, turn), grade in valid.items() if keep(id_, turn)})

        found.append(
            ModelGrades(
                model=model,
                overall=mean(valid),
                by_turn=tuple(some(lambda id_, turn, n=n: turn == n) for n in range(num_turns)),  # type: ignore[misc]
                by_category={
                    kind: some(lambda id_, turn, kind=kind: named.get(id_) == kind)  # type: ignore[misc]
                    for kind in kinds
                },
                num_invalid=len(given) - len(valid),
                difference=None
                if baseline is None or model == baseline or baseline not in by_model
                else mean(_differences(valid, by_model[baseline])),
            )
        )
    # A mean of nothing is the last.
    return sorted(found, key=lambda row: (math.isnan(row.overall.mean), -row.overall.mean, row.model))


def _differences(
    own: Mapping[tuple[str, int], float], other: Mapping[tuple[str, int], float | None]
) -> dict[tuple[str, int], float]:
    return {place: grade - beside for place, grade in own.items() if (beside := other.get(place)) is not None}


def _mean(
    values: Mapping[tuple[str, int], float], confidence: float, num_resamples: int, seed: int
) -> GradeMean:
    if not values:
        return GradeMean(math.nan, Interval(math.nan, math.nan), 0)
    prompts, index = np.unique([id_ for id_, _ in values], return_inverse=True)
    numbers: Array = np.array(list(values.values()))
    sums, sizes = np.bincount(index, numbers), np.bincount(index).astype(np.float64)
    draws = [
        (weights.prompts @ sums) / (weights.prompts @ sizes)
        for weights in resample(len(prompts), num_resamples=num_resamples, seed=seed)
    ]
    mean = math.fsum(numbers) / len(numbers)
    interval = widened_interval(
        percentile_interval(np.concatenate(draws), confidence), mean, len(prompts), confidence
    )
    return GradeMean(mean, interval, len(numbers))
