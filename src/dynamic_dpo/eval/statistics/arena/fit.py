"""The regression beneath Arena-Hard's score: questions in, coefficients out, for the sample and for every resample.

A question's log-odds are the difference of its models' strengths, the baseline's being 0, plus the effects of what
its outputs differ in. A tie is half a win, and a question counts as often as its verdicts weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynamic_dpo.eval.statistics.arena.battles import Battle
from dynamic_dpo.eval.statistics.resampling import PRIOR_EACH, Array, resample

# Enough for every estimate to be finite, too little to move one.
POINT_PRIOR = 0.01
NEWTON_STEPS, LARGEST_STEP = 60, 2.0


class Fitted(NamedTuple):
    """Coefficients: a strength for each model but the baseline, then an effect for each feature.

    Attributes:
        point: Of all questions. Shape [P].
        draws: Of every resample of prompts. Shape [B, P].
        num_prompts: Prompts of these questions.
    """

    point: Array
    draws: Array
    num_prompts: int


def fit(
    rows: Sequence[Battle], names: Sequence[str], features: Array, *, num_resamples: int, seed: int
) -> Fitted:
    """Fit strengths and effects.

    Args:
        rows: The questions, at least one.
        names: The models that have a strength: all but the baseline, and all connected with it.
        features: What each question's outputs differ in, shape [R, F]; F may be 0.
        num_resamples: Bootstrap resamples of prompts.
        seed: Seed of the bootstrap.
    """
    design = _Design(rows, names, features)
    return Fitted(design.point(), design.resampled(num_resamples, seed), design.num_prompts)


class _Design:
    """Questions as a regression: what each row is, and what is added so that every estimate is finite."""

    def __init__(self, rows: Sequence[Battle], names: Sequence[str], features: Array) -> None:
        place = {name: column for column, name in enumerate(names)}
        num_models = len(names)
        self.x = np.zeros((len(rows), num_models + features.shape[1]))
        pairs: dict[tuple[str, str], None] = {}
        for number, row in enumerate(rows):
            for name, sign in ((row.model, 1.0), (row.other, -1.0)):
                if name in place:  # The baseline's strength is 0.
                    self.x[number, place[name]] = sign
            pairs[row.model, row.other] = None
        self.x[:, num_models:] = features
        self.sizes = np.array([row.size for row in rows])
        self.shares = np.array([row.points for row in rows]) / self.sizes
        prompts, self.index = np.unique([row.prompt for row in rows], return_inverse=True)
        self.num_prompts = len(prompts)
        # A question half won and half lost: for every two models that met, and for every feature by itself.
        added = [np.zeros(self.x.shape[1]) for _ in range(len(pairs) + features.shape[1])]
        for row_added, pair in zip(added, pairs, strict=False):
            for name, sign in zip(pair, (1.0, -1.0), strict=True):
                if name in place:
                    row_added[place[name]] = sign
        for number in range(features.shape[1]):
            added[len(pairs) + number][num_models + number] = 1.0
        self.added = np.array(added)
        self.added_size = float(self.sizes.mean())

    def point(self) -> Array:
        """Return the coefficients of all questions. Shape [P]."""
        prior = np.full((1, len(self.added)), POINT_PRIOR / 2)
        coefficients: Array = self._fit(np.ones((1, self.num_prompts)), prior, prior)[0]
        return coefficients

    def resampled(self, num_resamples: int, seed: int) -> Array:
        """Return the coefficients of every resample of prompts. Shape [B, P]."""
        rng = np.random.default_rng([seed, 2])
        found = []
        for weights in resample(self.num_prompts, num_resamples=num_resamples, seed=seed):
            # What is added to one comparison says nothing about another: each is drawn for itself.
            shape = (len(weights.prompts), len(self.added))
            won, lost = rng.standard_gamma(PRIOR_EACH, shape), rng.standard_gamma(PRIOR_EACH, shape)
            found.append(self._fit(weights.prompts, won, lost))
        return np.concatenate(found)

    def _fit(self, prompt_weights: Array, won: Array, lost: Array) -> Array:
        """Fit every resample at once by Newton's method. [B, N], [B, A], [B, A] -> [B, P]."""
        x = np.concatenate([self.x, self.added])
        w = np.concatenate(
            [prompt_weights[:, self.index] * self.sizes, (won + lost) * self.added_size], axis=1
        )
        points = np.concatenate(
            [prompt_weights[:, self.index] * (self.sizes * self.shares), won * self.added_size], axis=1
        )
        num_columns = x.shape[1]
        squares = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        coefficients = np.zeros((len(w), num_columns))
        for _ in range(NEWTON_STEPS):
            expected = 0.5 * (1.0 + np.tanh(coefficients @ x.T / 2.0))
            gradient = (points - w * expected) @ x
            hessian = ((w * expected * (1.0 - expected)) @ squares).reshape(-1, num_columns, num_columns)
            hessian = hessian + 1e-12 * np.eye(num_columns)
            steps = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
            # Far from the optimum the curvature vanishes and a full step would overshoot.
            steps = np.clip(steps, -LARGEST_STEP, LARGEST_STEP)
            coefficients = coefficients + steps
            if np.abs(steps).max() < 1e-9:
                break
        return coefficients
