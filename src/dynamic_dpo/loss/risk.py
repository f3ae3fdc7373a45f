"""The risk test and the update of beta, as pure functions of numbers.

The equations of the faithful controller, one function each, then those that the other modes and the monitor
share. `dynamic_dpo.methods.risk.paper` strings the first together, and `dynamic_dpo.methods.risk.controller` owns
the state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
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


def centred_scores(law: Sequence[float]) -> tuple[float, ...]:
    """Return the score ``s(k) = P(K < k) - P(K > k)`` of each count k under a law of counts.

    It is one minus twice the mid-p value of k. Its mean under the law is 0 and ``|s| <= 1``.

    Args:
        law: Probabilities of k = 0 … n.

    Example:
        >>> centred_scores([0.5, 0.25, 0.25])
        (-0.5, 0.25, 0.75)
    """
    below = itertools.accumulate(law, initial=0.0)
    above = reversed(list(itertools.accumulate(reversed(law[1:]), initial=0.0)))
    # Rounded sums of probabilities may end above 1 by an ulp.
    return tuple(max(-1.0, min(1.0, b - a)) for b, a in zip(below, above, strict=False))


@lru_cache(maxsize=1024)
def binomial_law(n: int, rate: float) -> tuple[float, ...]:
    """Return ``P(K = k)`` for k = 0 … n events of probability ``rate``; float64, summing to 1.

    Raises:
        ValueError: If ``n`` is negative or ``rate`` outside (0, 1).

    Example:
        >>> binomial_law(2, 0.5)
        (0.25, 0.5, 0.25)
    """
    if n < 0 or not 0 < rate < 1:
        raise ValueError(f"need n >= 0 and a rate in (0, 1), got n {n}, rate {rate}")
    # Ratios from the mode outwards neither overflow nor lose digits.
    mode, odds = min(n, math.floor((n + 1) * rate)), rate / (1.0 - rate)
    weights = [0.0] * (n + 1)
    weights[mode] = 1.0
    for k in range(mode, n):
        weights[k + 1] = weights[k] * odds * (n - k) / (k + 1)
    for k in range(mode, 0, -1):
        weights[k - 1] = weights[k] / odds * k / (n - k + 1)
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


@lru_cache(maxsize=1024)
def mid_p_scores(n: int, delta: float) -> tuple[float, ...]:
    """Return the centred score of k = 0 … n exceedances where each of n margins exceeds with probability ``delta``.

    Example:
        >>> [round(s, 3) for s in mid_p_scores(16, 0.1)[:4]]
        [-0.815, -0.3, 0.304, 0.721]
    """
    return centred_scores(binomial_law(n, delta))


def tied_mid_p_score(num_above: int, num_ties: int, n: int, delta: float) -> float:
    """Return the mid-p score of a batch in which some margins lie exactly on the threshold.

    A tie counts as an exceedance with probability ``delta``, independently of the others, and the score is the
    mean over that: a batch that lies on the threshold as a whole says nothing, and scores 0.

    Args:
        num_above: Margins above the threshold.
        num_ties: Margins equal to it.
        n: Margins in the batch, at least ``num_above + num_ties`` and 1.
        delta: Tolerated rate of exceedance, in (0, 1).

    Returns:
        A score in [-1, 1].

    Example:
        >>> tied_mid_p_score(2, 0, n=16, delta=0.1) == mid_p_scores(16, 0.1)[2]
        True
        >>> abs(tied_mid_p_score(0, 16, n=16, delta=0.1)) < 1e-12
        True
    """
    scores = mid_p_scores(n, delta)
    chances = binomial_law(num_ties, delta)
    mean = math.fsum(chance * scores[num_above + j] for j, chance in enumerate(chances))
    return max(-1.0, min(1.0, mean))


def quantile_gain(momentum: float, delta: float) -> float:
    """Return the gain with which a stochastic approximation of tau forgets at the rate ``momentum``.

    Near the (1 - delta)-quantile of margins of scale 1, moving tau by ``gain (p_hat - delta)`` pulls it back by
    ``gain φ(z)`` times its distance, z = Φ⁻¹(1 - delta), so that ``gain = momentum / φ(z)``.

    Example:
        >>> round(0.1 / quantile_gain(0.1, delta=0.1), 4)
        0.1755
    """
    normal = NormalDist()
    return momentum / normal.pdf(normal.inv_cdf(1.0 - delta))


def log_e_value(num_above: float, n: int, delta: float, rate: float) -> float:
    """Return ``ln[(rate/delta)^k ((1 - rate)/(1 - delta))^(n - k)]``, the evidence of k exceedances in n margins.

    Args:
        num_above: Exceedances k; an expected count where ties are split.
        n: Margins in the batch.
        delta: Tolerated rate of exceedance.
        rate: The rate to detect, above ``delta``.

    Returns:
        Nats of evidence for ``rate`` over ``delta``; the mean of its exponential is 1 where ``delta`` is true.

    Example:
        >>> round(log_e_value(4, n=16, delta=0.1, rate=0.2), 3)
        1.359
    """
    return num_above * math.log(rate / delta) + (n - num_above) * math.log((1.0 - rate) / (1.0 - delta))
