"""The weighted win rate: the mean of how surely the judge preferred a model, as AlpacaEval 2 counts.

A judge that is 51 % sure moves it by a fiftieth of what a sure judge does, where the win rate of verdicts counts
both alike. Without probabilities the two are the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import distinct, only_judge


class Preference(NamedTuple):
    """How surely a judge preferred a model on one question, both orders averaged.

    Attributes:
        prompt: The prompt's id.
        sample: The outputs' sample number.
        value: 1: the model for sure, 0: the baseline for sure.
        num_judgements: Valid judgements that were averaged.
    """

    prompt: str
    sample: int
    value: float
    num_judgements: int


class WeightedWinRate(NamedTuple):
    """A mean preference.

    Attributes:
        rate: Mean preference over all valid judgements, in [0, 1].
        standard_error: Of the rate over prompts like these; a prompt's judgements are kept together. With one
            judgement a prompt it is AlpacaEval's: the standard deviation over the square root of the number. NaN for
            one prompt.
        num_prompts: Prompts with a valid judgement.
    """

    rate: float
    standard_error: float
    num_prompts: int


def preferences(
    judgements: Sequence[JudgementRecord], model: str, baseline: str, *, judge: str | None = None
) -> list[Preference]:
    """Return the preferences between two models, question by question, in sorted order.

    Args:
        judgements: Any judgements; those of other models and judges are passed over, invalid ones too.
        model: Whose preference counts.
        baseline: The other model.
        judge: Whose judgements count; ``None`` where there is only one judge.

    Raises:
        DataError: If the judgements are of several judges and none is named, or one cannot be read.
    """
    about = [record for record in distinct(judgements) if {record.first, record.second} == {model, baseline}]
    judge = only_judge(about) if judge is None else judge
    found: dict[tuple[str, int], list[float]] = {}
    for record in about:
        value = record.preference(model)
        if record.judge == judge and value is not None:
            found.setdefault((record.id, record.sample), []).append(value)
    return [
        Preference(prompt, sample, math.fsum(values) / len(values), len(values))
        for (prompt, sample), values in sorted(found.items())
    ]


def weighted_win_rate(
    judgements: Sequence[JudgementRecord], model: str, baseline: str, *, judge: str | None = None
) -> WeightedWinRate:
    """Compute the weighted win rate of one model against another.

    Args:
        judgements: As for `preferences`.
        model: Whose wins are counted.
        baseline: Against whom.
        judge: Whose judgements count; ``None`` where there is only one judge.

    Raises:
        DataError: If there is no valid judgement between the two, or as `preferences`.

    Example:
        >>> sure = JudgementRecord("k1", "p1", 0, "j", "old", "new", "B", prob_first=0.0)
        >>> unsure = JudgementRecord("k2", "p2", 0, "j", "old", "new", "B", prob_first=0.5)
        >>> weighted_win_rate([sure, unsure], "new", "old")
        WeightedWinRate(rate=0.75, standard_error=0.25, num_prompts=2)
    """
    found = preferences(judgements, model, baseline, judge=judge)
    if not found:
        raise DataError(f"there is no valid judgement between {model!r} and {baseline!r}: judge them first")
    return mean_preference(found)


def mean_preference(found: Sequence[Preference]) -> WeightedWinRate:
    """Return the mean of at least one preference with its standard error."""
    _, prompts = np.unique([preference.prompt for preference in found], return_inverse=True)
    sizes = np.array([float(preference.num_judgements) for preference in found])
    values = np.array([preference.value for preference in found])
    rate = float(values @ sizes / sizes.sum())
    num_prompts = int(prompts.max()) + 1
    if num_prompts == 1:
        return WeightedWinRate(rate, math.nan, 1)
    # The sandwich of a ratio of sums over prompts: with one judgement each it is the usual standard error.
    deviations = np.bincount(prompts, weights=(values - rate) * sizes)
    spread = float((deviations**2).sum()) * num_prompts / (num_prompts - 1)
    return WeightedWinRate(rate, math.sqrt(spread) / float(sizes.sum()), num_prompts)
