"""The risk test and the update of beta, as pure functions of numbers.

The equations of the faithful controller, one function each; ``methods/risk.py`` strings them together and
owns the state. Nothing here remembers anything.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from dynamic_dpo.errors import ConfigError


class RiskStatistic(NamedTuple):
    """The standardised excess ``u_k`` of the observed rate and its squashed form ``s_k`` in (-1, 1)."""

    u_k: float
    s_k: float


class BetaUpdate(NamedTuple):
    """One update of beta: the new value, the standardised statistic, its squashed form, the step size."""

    beta_new: float
    u_k: float
    s_k: float
    alpha: float


def check_beta_bounds(beta_0: float, beta_min: float, beta_max: float) -> None:
    """Raise `ConfigError` unless ``0 < beta_0`` and ``0 ≤ beta_min ≤ beta_0 ≤ beta_max < ∞``."""
    if not (math.isfinite(beta_0) and beta_0 > 0):
        raise ConfigError(f"beta_0 must be a positive number, got {beta_0}")
    if not (0 <= beta_min <= beta_0 <= beta_max < math.inf):
        raise ConfigError(
            "the bounds of beta must satisfy 0 <= beta_min <= beta_0 <= beta_max, "
            f"got beta_min {beta_min}, beta_0 {beta_0}, beta_max {beta_max}"
        )


def check_delta(delta: float) -> None:
    """Raise `ConfigError` unless ``delta`` lies strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta must lie in (0, 1), got {delta}: it is a tolerated rate of exceedance")


def clip_beta(beta: float, beta_min: float, beta_max: float) -> float:
    """Return ``beta`` moved into ``[beta_min, beta_max]``."""
    return min(max(beta, beta_min), beta_max)


def empirical_over_threshold_proportion(margins: Tensor, threshold: float) -> float:
    """Return the share of margins that reach the threshold, the observed rate of exceedance ``p_hat``.

    The mean is taken in float32, as the controller's reference traces have it.

    Args:
        margins: Margins in nats, without beta. Shape [N].
        threshold: ``tau`` in nats.

    Returns:
        A proportion in [0, 1].

    Raises:
        ValueError: If ``margins`` is empty.

    Example:
        >>> import torch
        >>> empirical_over_threshold_proportion(torch.tensor([0.0, 1.0, 2.0, 3.0]), 2.0)
        0.5
    """
    if margins.numel() == 0:
        raise ValueError("margins is empty: a rate of exceedance needs at least one pair")
    return float((margins.detach() >= threshold).float().mean())


def risk_test(p_hat: float, delta: float) -> bool:
    """Return whether the observed rate of exceedance is above the tolerated one.

    Example:
        >>> risk_test(0.125, delta=0.1), risk_test(0.1, delta=0.1)
        (True, False)
    """
    return bool(p_hat > delta)


def risk_statistic(p_hat: float, delta: float, n: int, gamma: float) -> RiskStatistic:
    """Return ``u = (p_hat - delta) / sqrt(delta (1 - delta) / n)`` and ``s = tanh(gamma u)``.

    Args:
        p_hat: Observed rate of exceedance, in [0, 1].
        delta: Tolerated rate, in (0, 1).
        n: Number of margins behind ``p_hat``.
        gamma: Gain before the squashing.

    Returns:
        ``(u_k, s_k)``.

    Raises:
        ValueError: If ``delta`` is outside (0, 1), ``n`` below 1 or ``p_hat`` not a number.

    Example:
        >>> risk_statistic(0.4, delta=0.1, n=4, gamma=1.0).u_k
        2.0
    """
    check_delta(delta)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: it is the number of margins behind p_hat")
    if math.isnan(p_hat):
        raise ValueError("p_hat is NaN: leave non-finite margins out before testing")
    u_k = (p_hat - delta) / math.sqrt(delta * (1.0 - delta) / n)
    return RiskStatistic(u_k, math.tanh(gamma * u_k))


def update_beta(
    beta: float,
    p_hat: float,
    delta: float,
    alpha: float,
    n: int,
    gamma: float,
    beta_min: float,
    beta_max: float,
) -> BetaUpdate:
    """Move beta by the risk statistic of one controller batch.

    ``beta_new = clip(beta exp(alpha s), beta_min, beta_max)`` with ``u`` and ``s`` of
    `risk_statistic`. Too many large margins push beta up, which tightens the tie to the reference.

    Args:
        beta: The current beta.
        p_hat: Observed rate of exceedance, in [0, 1].
        delta: Tolerated rate, in (0, 1).
        alpha: Step size in ln beta.
        n: Number of margins behind ``p_hat``.
        gamma: Gain before the squashing.
        beta_min: Lower bound of beta.
        beta_max: Upper bound of beta.

    Returns:
        ``(beta_new, u_k, s_k, alpha)``.

    Raises:
        ValueError: If ``delta`` is outside (0, 1), ``n`` below 1 or ``p_hat`` not a number.

    Example:
        >>> update_beta(0.1, 0.1, delta=0.1, alpha=0.005, n=16, gamma=2.0, beta_min=0.0, beta_max=2.0).beta_new
        0.1
    """
    u_k, s_k = risk_statistic(p_hat, delta, n, gamma)
    beta_new = clip_beta(beta * math.exp(alpha * s_k), beta_min, beta_max)
    return BetaUpdate(beta_new, u_k, s_k, alpha)
