"""One strength for each of several models, from all their comparisons together.

Bradley and Terry's model: the log-odds that i is preferred to j are the difference of their strengths; a tie is half
a win for both. It takes preferences to be transitive, which a judge's need not be. Two models need no such model:
for them the win rate says all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import compare, model_pairs, only_judge
from dynamic_dpo.eval.statistics.resampling import (
    PRIOR_EACH,
    Array,
    Interval,
    check_settings,
    percentile_interval,
    resample,
    widened_interval,
)

REGULARISATION = (
    "One prompt, half won and half lost, is added to every two models that were compared; without it a model that "
    "won everything would have no finite strength."
)
NEWTON_STEPS, LARGEST_STEP = 60, 2.0


@dataclass(frozen=True)
class ModelStrength:
    """One model's place.

    Attributes:
        name: The model.
        strength: Log-odds against an average model of its group.
        interval: By refitting on every resample of prompts, widened as Student's t is.
        group: Number of its group of connected models, from 0; strengths of two groups cannot be compared.
    """

    name: str
    strength: float
    interval: Interval
    group: int


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of all models, strongest first within each group.

    Attributes:
        models: The strengths.
        num_groups: Groups of models without a comparison between them; 1 where everything hangs together.
        notes: What a reader must know: the regularisation, a disconnected graph, models without a loss or a win.
    """

    models: tuple[ModelStrength, ...]
    num_groups: int
    notes: tuple[str, ...]


def bradley_terry(
    judgements: Sequence[JudgementRecord],
    *,
    judge: str | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> BradleyTerry:
    """Fit the strengths of three or more models.

    Args:
        judgements: Any judgements.
        judge: Whose judgements count; ``None`` where there is only one judge.
        confidence: Of the intervals.
        num_resamples: Bootstrap resamples, each with a fit of its own.
        seed: Seed of the bootstrap.

    Raises:
        DataError: If fewer than three models have valid judgements.
    """
    from scipy.sparse.csgraph import connected_components

    check_settings(confidence=confidence, num_resamples=num_resamples)
    models, points = _points(judgements, judge)
    if len(models) < 3:
        raise DataError(
            f"Bradley-Terry strengths need three models with valid judgements, got {len(models)}; for two models "
            "the win rate says all"
        )
    total = points.sum(0)
    compared = (total + total.T) > 0
    num_groups, groups = connected_components(compared, directed=False)
    # A prompt's worth of judgements for every pair, as the added prompt must weigh what a prompt does.
    per_prompt = ((points + points.transpose(0, 2, 1)) > 0).sum(0)
    added = np.divide(total + total.T, per_prompt, out=np.zeros_like(total), where=compared)

    strengths = _fit((total + PRIOR_EACH * added)[None], groups)[0]
    rng = np.random.default_rng([seed, 1])
    flat = points.reshape(len(points), -1)
    resampled = []
    for weights in resample(len(points), num_resamples=num_resamples, seed=seed):
        wins = (weights.prompts @ flat).reshape(-1, *total.shape)
        # Each pair's added prompt is drawn for itself: what is added to one says nothing about another.
        resampled.append(_fit(wins + rng.standard_gamma(PRIOR_EACH, wins.shape) * added, groups))
    draws = np.concatenate(resampled)
    rows = [
        ModelStrength(
            name,
            float(strengths[k]),
            widened_interval(
                percentile_interval(draws[:, k], confidence), float(strengths[k]), len(points), confidence
            ),
            int(groups[k]),
        )
        for k, name in enumerate(models)
    ]
    rows.sort(key=lambda row: (row.group, -row.strength, row.name))
    return BradleyTerry(tuple(rows), int(num_groups), _notes(models, total, groups, num_groups))


def _points(judgements: Sequence[JudgementRecord], judge: str | None) -> tuple[list[str], Array]:
    """Return the models, and W + T/2 of each over each on every prompt: [N, M, M]."""
    judge = only_judge(judgements) if judge is None else judge
    pairs = [compare(judgements, *pair, judge=judge) for pair in model_pairs(judgements)]
    pairs = [pair for pair in pairs if pair.counts.num_valid]
    models = sorted({name for pair in pairs for name in (pair.model, pair.baseline)})
    prompts = sorted(
        {prompt for pair in pairs for prompt, counts in pair.by_prompt.items() if counts.num_valid}
    )
    place, row = {name: k for k, name in enumerate(models)}, {prompt: k for k, prompt in enumerate(prompts)}
    points = np.zeros((len(prompts), len(models), len(models)))
    for pair in pairs:
        i, j = place[pair.model], place[pair.baseline]
        for prompt, counts in pair.by_prompt.items():
            if counts.num_valid:
                points[row[prompt], i, j] = counts.points
                points[row[prompt], j, i] = counts.num_valid - counts.points
    return models, points


def _fit(wins: Array, groups: NDArray[np.int32]) -> Array:
    """Return the strengths of greatest likelihood, centred in each group. [B, M, M] -> [B, M]."""
    played = wins + wins.transpose(0, 2, 1)
    together = (groups[:, None] == groups[None, :]).astype(np.float64)
    diagonal = np.eye(len(groups))
    strengths = np.zeros(wins.shape[:2])
    for _ in range(NEWTON_STEPS):
        expected = 0.5 * (1.0 + np.tanh((strengths[:, :, None] - strengths[:, None, :]) / 2.0))
        gradient = (wins - played * expected).sum(2)
        curvature = played * expected * (1.0 - expected)
        # Only differences count; the added block keeps each group's mean where it is and the system regular.
        hessian = diagonal * curvature.sum(2)[:, :, None] - curvature + together
        steps = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        steps = np.clip(steps, -LARGEST_STEP, LARGEST_STEP)
        strengths = strengths + steps
        strengths -= strengths @ (together / together.sum(0))
        if np.abs(steps).max() < 1e-9:
            break
    return strengths


def _notes(models: list[str], total: Array, groups: NDArray[np.int32], num_groups: int) -> tuple[str, ...]:
    notes = [REGULARISATION]
    if num_groups > 1:
        listed = "; ".join(
            ", ".join(name for name, group in zip(models, groups, strict=True) if group == number)
            for number in range(num_groups)
        )
        notes.append(
            f"The comparisons fall into {num_groups} groups with none between them ({listed}): strengths of "
            "different groups cannot be compared."
        )
    for name, won, lost in zip(models, total.sum(1), total.sum(0), strict=True):
        if not lost or not won:
            notes.append(
                f"{name} {'lost' if not lost else 'won'} nothing: its strength has no finite estimate, and the "
                "figure shown rests on the added prompt."
            )
    return tuple(notes)
