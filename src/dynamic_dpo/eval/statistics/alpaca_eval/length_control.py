"""The length-controlled win rate that AlpacaEval 2 publishes (Dubois et al. 2024, arXiv:2404.04475).

A logistic regression explains how surely the judge preferred the model by which model it was, by tanh of the
standardised difference in length, and by the difficulty of the instruction. The win rate is what it predicts where
both outputs are equally long. Two things keep it from being gamed by outputs whose lengths tell nothing: coefficients
are penalised, by a weight that five folds choose, and the fit also has to explain how the judge sees the baseline
itself when it writes shorter and longer.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.eval.statistics.alpaca_eval.l1_logistic import Array, choose_cost, fit_l1, logistic

NUM_FOLDS: Final = 5
BASELINE_WEIGHT: Final = 0.2
"""Weight of an instruction of the baseline against itself, where the model's has 1."""


class BaselineAtOtherLengths(NamedTuple):
    """How the judge sees the baseline when it writes shorter or longer, against the baseline as it is.

    Attributes:
        longer: Difference in length in its standard deviations, positive where the changed output is longer. Shape
            [R].
        difficulty: Of the instruction. Shape [R].
        preference: For the changed output, in [0, 1]. Shape [R].
        place: Number of the instruction. Shape [R].
    """

    longer: Array
    difficulty: Array
    preference: Array
    place: NDArray[np.intp]


class LengthControlled(NamedTuple):
    """A length-controlled win rate and the regression behind it.

    Attributes:
        rate: Mean of the predicted preferences at equal lengths, in [0, 1].
        standard_error: Of that mean, over the instructions; NaN for one. How uncertain the regression is, is not in
            it.
        bias: The model's log-odds at equal length on an instruction of difficulty 0.
        length_effect: Coefficient of tanh of the standardised difference: positive where longer outputs are
            preferred.
        difficulty_effect: Coefficient of the difficulty; 0 without difficulties.
        cost: Weight of the data against the penalty that the folds chose.
    """

    rate: float
    standard_error: float
    bias: float
    length_effect: float
    difficulty_effect: float
    cost: float


def fit_length_controlled(
    preference: Array,
    longer: Array,
    difficulty: Array,
    baseline: BaselineAtOtherLengths | None,
    *,
    place: NDArray[np.intp] | None = None,
    weight: Array | None = None,
) -> LengthControlled:
    """Fit the length-controlled win rate of one model.

    Args:
        preference: How surely the judge preferred the model, in [0, 1]. Shape [N].
        longer: Characters of the model's output less those of the baseline's. Shape [N].
        difficulty: Of each instruction: the log-odds that it adds for every model; all 0 where it is not known.
            Shape [N].
        baseline: What pulls the coefficients to those of the baseline; ``None`` for nothing.
        place: Number of each row's instruction: rows of one instruction are left out together. ``None``: one row
            each. Shape [N].
        weight: Of each row; ``None``: 1. Shape [N].

    Returns:
        The win rate with its coefficients.
    """
    weight = np.ones(len(preference)) if weight is None else weight
    place = np.arange(len(preference)) if place is None else place
    design = _design(standardised(longer), difficulty, is_model=True)
    rows, shares, weights, folds = [design], [preference], [weight], [place % NUM_FOLDS]
    if baseline is not None and len(baseline.preference):
        rows.append(_design(baseline.longer, baseline.difficulty, is_model=False))
        shares.append(baseline.preference)
        # Together the shorter and the longer outputs of an instruction weigh as much as BASELINE_WEIGHT says.
        per_place = max(len(baseline.preference) / max(len(np.unique(baseline.place)), 1), 1.0)
        weights.append(np.full(len(baseline.preference), BASELINE_WEIGHT * float(weight.mean()) / per_place))
        folds.append(baseline.place % NUM_FOLDS)
    data = np.concatenate(rows), np.concatenate(shares), np.concatenate(weights)
    cost = choose_cost(*data, np.concatenate(folds))
    coefficients = fit_l1(*data, cost)
    predicted = logistic(_design(np.zeros(len(preference)), difficulty, is_model=True) @ coefficients)
    mean, error = _mean_with_error(predicted, weight)
    length_effect, difficulty_effect, bias = (float(value) for value in coefficients)
    return LengthControlled(mean, error, bias, length_effect, difficulty_effect, cost)


def standardised(longer: Array) -> Array:
    """Return differences in length in their standard deviations; zeros where all are equal and tell nothing.

    >>> standardised(np.array([-10.0, 0.0, 10.0])).tolist()
    [-1.0, 0.0, 1.0]
    """
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    # Differences that are all alike leave rounding behind, not a scale.
    if spread <= 1e-9 * max(float(np.abs(longer).max(initial=0.0)), 1.0):
        return np.zeros(len(longer))
    return longer / spread


def _design(longer: Array, difficulty: Array, *, is_model: bool) -> Array:
    # The baseline against itself has no bias: at equal length the two outputs are the same.
    return np.stack([np.tanh(longer), difficulty, np.full(len(longer), float(is_model))], axis=1)


def _mean_with_error(values: Array, weight: Array) -> tuple[float, float]:
    total = float(weight.sum())
    mean = float(values @ weight) / total
    if len(values) < 2:
        return mean, math.nan
    spread = float((((values - mean) * weight) ** 2).sum()) * len(values) / (len(values) - 1)
    return mean, math.sqrt(spread) / total
