"""Logistic regression on shares, with an L1 penalty whose weight is chosen by cross-validation.

A few columns and thousands of rows: a proximal Newton method, which takes some ten steps.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COSTS: Final = np.logspace(-4, 4, 10)
"""Weights of the data against the penalty that are tried, the usual ten."""

_MOST_STEPS, _MOST_SWEEPS = 100, 1000


def fit_l1(design: Array, shares: Array, weights: Array, cost: float, start: Array | None = None) -> Array:
    r"""Minimise ``sum |b| + cost * sum weights * (log(1 + exp(z)) - shares * z)`` with ``z = design @ b``.

    Args:
        design: Explaining columns. Shape [N, K].
        shares: What is explained, in [0, 1]. Shape [N].
        weights: Of the rows. Shape [N].
        cost: Weight of the data against the penalty.
        start: Where to begin, [K]; ``None``: at zero.

    Returns:
        The coefficients b. Shape [K].

    Example:
        >>> half = np.ones((4, 1))
        >>> bias = fit_l1(half, np.array([1.0, 1.0, 1.0, 0.0]), np.ones(4), cost=1e6)
        >>> round(float(bias[0]), 4)  # the log-odds of 3/4
        1.0986
    """
    coefficients = np.zeros(design.shape[1]) if start is None else start.copy()

    def objective(b: Array) -> float:
        z = design @ b
        loss = float(weights @ (np.logaddexp(0.0, z) - shares * z))
        return float(np.abs(b).sum()) + cost * loss

    value = objective(coefficients)
    for _ in range(_MOST_STEPS):
        p = logistic(design @ coefficients)
        gradient = cost * (design.T @ (weights * (p - shares)))
        curvature = cost * (design.T * (weights * p * (1.0 - p))) @ design
        # Where all rows are certain the curvature vanishes, and so would the step.
        curvature[np.diag_indices_from(curvature)] += 1e-9 * cost + 1e-12
        step = _lasso(gradient, curvature, coefficients)
        length = 1.0
        while (new := objective(coefficients + length * step)) > value and length > 1e-10:
            length /= 2.0
        coefficients = coefficients + length * step
        done = value - new <= 1e-10 * max(abs(value), 1e-12)
        value = min(value, new)
        if done:
            break
    return coefficients


def choose_cost(design: Array, shares: Array, weights: Array, folds: NDArray[np.intp]) -> float:
    """Return the one of `COSTS` with the lowest loss on rows left out; of equal ones the smallest.

    Args:
        design: Explaining columns. Shape [N, K].
        shares: What is explained, in [0, 1]. Shape [N].
        weights: Of the rows. Shape [N].
        folds: Number of the fold in which a row is left out. Shape [N].
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return float(COSTS[-1])
    losses = np.zeros(len(COSTS))
    for number in numbers:
        left_out = folds == number
        kept = ~left_out
        coefficients = np.zeros(design.shape[1])
        for place, cost in enumerate(COSTS):
            coefficients = fit_l1(design[kept], shares[kept], weights[kept], float(cost), coefficients)
            z = design[left_out] @ coefficients
            loss = weights[left_out] * (np.logaddexp(0.0, z) - shares[left_out] * z)
            losses[place] += float(loss.mean())
    return float(COSTS[int(losses.argmin())])


def logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2.0)), dtype=np.float64)


def _lasso(gradient: Array, curvature: Array, at: Array) -> Array:
    """Return the step d that minimises ``gradient @ d + d @ curvature @ d / 2 + sum |at + d|``."""
    step = np.zeros_like(at)
    for _ in range(_MOST_SWEEPS):
        largest = 0.0
        for k in range(len(at)):
            slope = gradient[k] + curvature[k] @ step - curvature[k, k] * step[k]
            # Soft threshold of the coordinate's own optimum.
            target = at[k] - slope / curvature[k, k]
            moved = np.sign(target) * max(abs(target) - 1.0 / curvature[k, k], 0.0) - at[k]
            largest = max(largest, abs(moved - step[k]))
            step[k] = moved
        if largest < 1e-10 * (1.0 + float(np.abs(at).max())):
            break
    return step
