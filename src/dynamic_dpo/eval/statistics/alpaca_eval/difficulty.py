"""How hard an instruction is for every model that is compared with one baseline: read from a file, or estimated.

The estimate is one regression for many models: each has its bias and its length effect, all share the difficulties
(Dubois et al. 2024, arXiv:2404.04475, section 3). A difficulty is in log-odds and higher where models do better.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from dynamic_dpo.eval.statistics.alpaca_eval.l1_logistic import Array, logistic
from dynamic_dpo.eval.statistics.alpaca_eval.length_control import BaselineAtOtherLengths, standardised

RIDGE: Final = 0.1
"""Penalty on squared difficulties: without one, an instruction that every model lost has none that is finite. Of .01
to .5, this one came nearest to the published win rates of models that had no part in the difficulties."""


class JointFit(NamedTuple):
    """What many models' preferences say together.

    Attributes:
        difficulty: Of each instruction, 0 on average. Shape [N].
        length_effect: Median of the models' length effects.
    """

    difficulty: Array
    length_effect: float


def fit_jointly(preference: Array, longer: Array) -> JointFit:
    """Estimate difficulties from many models' preferences against one baseline.

    Args:
        preference: How surely the judge preferred each model, in [0, 1]; NaN where it was not asked. Shape [M, N].
        longer: Characters of the models' outputs less those of the baseline's; anything where the preference is NaN.
            Shape [M, N].

    Returns:
        The difficulties. Those of few models are of these models more than of the instructions: see
        ``docs/evaluation.md`` for how far that carries.
    """
    from scipy.optimize import minimize

    num_models, num_instructions = preference.shape
    known = ~np.isnan(preference)
    shares, weight = np.where(known, preference, 0.0), known.astype(np.float64)
    lengths = np.zeros(preference.shape)
    for model in range(num_models):
        lengths[model, known[model]] = np.tanh(standardised(longer[model, known[model]]))
    # A trace of the same penalty keeps a model finite whose outputs won or lost all, or are all of one length.
    ridge = np.concatenate([np.full(2 * num_models, RIDGE / 10), np.full(num_instructions, RIDGE)])

    def loss(values: Array) -> tuple[float, Array]:
        bias, effect, difficulty = np.split(values, [num_models, 2 * num_models])
        z = bias[:, None] + effect[:, None] * lengths + difficulty
        residual = weight * (logistic(z) - shares)
        total = (weight * (np.logaddexp(0.0, z) - shares * z)).sum() + ridge @ values**2 / 2
        gradient = [residual.sum(1), (residual * lengths).sum(1), residual.sum(0)]
        return float(total), np.concatenate(gradient) + ridge * values

    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-12, "gtol": 1e-6}
    start = np.zeros(2 * num_models + num_instructions)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    _, effects, difficulty = np.split(found, [num_models, 2 * num_models])
    # The median: a model whose outputs are all of one length has an effect of its own making.
    return JointFit(difficulty - difficulty.mean(), float(np.median(effects)))


def baseline_at_other_lengths(difficulty: Array, length_effect: float) -> BaselineAtOtherLengths:
    """Return how the joint fit expects the judge to see the baseline, a standard deviation shorter and longer.

    It stands for judgements on a baseline that was told to write shorter and longer, where nobody has those.

    Args:
        difficulty: Of each instruction. Shape [N].
        length_effect: Of an average model.

    Example:
        >>> rows = baseline_at_other_lengths(np.zeros(1), length_effect=1.0)
        >>> rows.longer.tolist(), rows.preference.round(3).tolist()
        ([-1.0, 1.0], [0.318, 0.682])
    """
    longer = np.repeat([-1.0, 1.0], len(difficulty))
    twice = np.tile(difficulty, 2)
    preference = logistic(length_effect * np.tanh(longer) + twice)
    return BaselineAtOtherLengths(longer, twice, preference, np.tile(np.arange(len(difficulty)), 2))
