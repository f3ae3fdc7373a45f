"""What the win rate would be if both models wrote equally long outputs, by the model of AlpacaEval 2.

A logistic regression explains each verdict by which model wrote the output and by how much longer it is; the
length term is then set to zero (Dubois et al. 2024, arXiv:2404.04475). AlpacaEval's own number needs its prompts,
its judge, its baseline and its difficulty of every instruction; none of them is here, and every result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics.comparisons import Counts, compare
from dynamic_dpo.eval.statistics.resampling import (
    Array,
    Interval,
    Weights,
    check_settings,
    percentile_interval,
    resample,
)

CAVEAT = (
    "Not AlpacaEval's length-controlled win rate: the same length term, but without its instruction difficulty and "
    "its regularisation towards a baseline, and on other prompts or with another judge. It removes what a "
    "longer output gains with this judge, not what a better output gains by being longer."
)
# Enough for every estimate to be finite, too little to move one: 32 wins of 32 stay above 99.9 %.
POINT_PRIOR = 0.01
NEWTON_STEPS, LARGEST_STEP = 60, 2.0


@dataclass(frozen=True)
class LengthControlledWinRate:
    """A win rate at equal lengths.

    Attributes:
        model: Whose wins are counted.
        baseline: Against whom.
        rate: Modelled win rate at equal lengths.
        interval: By refitting on every resample of prompts.
        raw_rate: The plain win rate of the same judgements.
        length_effect: Coefficient of tanh(length difference / its standard deviation), in log-odds: positive
            where the judge prefers longer outputs.
        mean_length: Mean length of the model's judged outputs, in characters.
        baseline_mean_length: The same of the baseline's.
        num_prompts: Prompts in the fit.
        num_left_out: Judged questions without both outputs, left out.
        caveat: What this number is not.
    """

    model: str
    baseline: str
    rate: float
    interval: Interval
    raw_rate: float
    length_effect: float
    mean_length: float
    baseline_mean_length: float
    num_prompts: int
    num_left_out: int
    caveat: str = CAVEAT


def length_controlled_win_rate(
    judgements: Sequence[JudgementRecord],
    outputs: Sequence[OutputRecord],
    model: str,
    baseline: str,
    *,
    judge: str | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> LengthControlledWinRate:
    """Fit the length-controlled win rate of one model against another.

    Args:
        judgements: Any judgements.
        outputs: The outputs that were judged; lengths are counted in characters, as AlpacaEval does.
        model: Whose wins are counted.
        baseline: The other model.
        judge: Whose judgements count; ``None`` where there is only one judge.
        confidence: Of the interval.
        num_resamples: Bootstrap resamples, each with a fit of its own.
        seed: Seed of the bootstrap.

    Raises:
        DataError: If no judged question has both outputs.
    """
    check_settings(confidence=confidence, num_resamples=num_resamples)
    lengths = {(output.id, output.sample, output.model): len(output.text) for output in outputs}
    rows: list[tuple[str, Counts, int, int]] = []
    num_left_out = 0
    for sample in sorted({record.sample for record in judgements}):
        of_sample = [record for record in judgements if record.sample == sample]
        for prompt, counts in compare(of_sample, model, baseline, judge=judge).by_prompt.items():
            own, other = (lengths.get((prompt, sample, name)) for name in (model, baseline))
            if own is None or other is None:
                num_left_out += 1
            elif counts.num_valid:
                rows.append((prompt, counts, own, other))
    if not rows:
        raise DataError(
            f"no valid judgement between {model!r} and {baseline!r} has both its outputs ({num_left_out} have not); "
            "length control needs the texts that were judged"
        )
    prompts, index = np.unique([row[0] for row in rows], return_inverse=True)
    sizes = np.array([float(row[1].num_valid) for row in rows])
    shares = np.array([row[1].rate for row in rows])
    own_lengths = np.array([float(row[2]) for row in rows])
    other_lengths = np.array([float(row[3]) for row in rows])
    longer = own_lengths - other_lengths

    once = np.ones((1, len(prompts)))
    prior = np.full(1, POINT_PRIOR / 2)
    intercept, slope = _fit(Weights(once, prior, prior), index, sizes, shares, longer)
    rates = [
        _logistic(_fit(weights, index, sizes, shares, longer)[0])
        for weights in resample(len(prompts), num_resamples=num_resamples, seed=seed)
    ]
    return LengthControlledWinRate(
        model=model,
        baseline=baseline,
        rate=float(_logistic(intercept)[0]),
        interval=percentile_interval(np.concatenate(rates), confidence),
        raw_rate=float(shares @ sizes / sizes.sum()),
        length_effect=float(slope[0]),
        mean_length=float(own_lengths.mean()),
        baseline_mean_length=float(other_lengths.mean()),
        num_prompts=len(prompts),
        num_left_out=num_left_out,
    )


def _fit(
    weights: Weights, index: NDArray[np.intp], sizes: Array, shares: Array, longer: Array
) -> tuple[Array, Array]:
    """Fit intercept and length coefficient in every resample at once, by Newton's method. Both [B].

    The added prompt is won and lost, once longer and once shorter: no fit can then run off to infinity, not even
    where every longer output won.
    """
    # Each row's weight [B, R]: its prompt's, times its judgements relative to the average prompt's.
    added = sizes.sum() / weights.prompts.shape[1]
    row_weights = weights.prompts[:, index] * sizes
    x = np.tanh(longer / _spread(row_weights, longer)[:, None])
    ends = np.array([1.0, -1.0, 1.0, -1.0])
    won, lost = weights.won[:, None] * added / 2, weights.lost[:, None] * added / 2
    x = np.concatenate([x, np.broadcast_to(ends, (len(x), 4))], axis=1)
    w = np.concatenate([row_weights, won, won, lost, lost], axis=1)
    y = np.concatenate([shares, [1.0, 1.0, 0.0, 0.0]])
    intercept, slope = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(NEWTON_STEPS):
        p = _logistic(intercept[:, None] + slope[:, None] * x)
        residual, curvature = w * (y - p), w * p * (1.0 - p)
        a, b, c = curvature.sum(1), (curvature * x).sum(1), (curvature * x * x).sum(1)
        g, h = residual.sum(1), (residual * x).sum(1)
        determinant = np.maximum(a * c - b * b, 1e-300)
        steps = np.stack([c * g - b * h, a * h - b * g]) / determinant
        # Far from the optimum the curvature vanishes and a full step would overshoot.
        steps = np.clip(steps, -LARGEST_STEP, LARGEST_STEP)
        intercept, slope = intercept + steps[0], slope + steps[1]
        if np.abs(steps).max() < 1e-9:
            break
    return intercept, slope


def _spread(weights: Array, longer: Array) -> Array:
    """Return the standard deviation of the length differences in every resample, [B]; infinite where all are equal.

    Equal differences tell nothing about length, and an infinite scale takes the term out of the model.
    """
    num_rows = len(longer)
    total = weights.sum(1)
    mean = weights @ longer / total
    variance = np.maximum(weights @ longer**2 / total - mean**2, 0.0) * num_rows / max(num_rows - 1, 1)
    # Differences that are all alike leave rounding behind, not a scale.
    is_flat = variance <= 1e-12 * (weights @ longer**2 / total)
    return np.where(is_flat, np.inf, np.sqrt(variance))


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2.0)), dtype=np.float64)
