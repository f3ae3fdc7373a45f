"""The bootstrap over prompts, for figures that have to be fitted anew on every resample.

Prompts are resampled whole, with all their orders and samples, by smooth weights (Rubin's Bayesian bootstrap);
one further prompt, half won and half lost, is resampled with them. Without it 32 wins of 32 would give an
interval of no width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import ConfigError

Array = NDArray[np.float64]
# Weights held at once; a refit needs some ten arrays of this size.
BLOCK_NUMBERS = 1_000_000
# The half of a win and the half of a loss that are added: Jeffreys' prior of a proportion.
PRIOR_EACH = 0.5


class Interval(NamedTuple):
    """Two ends of an interval."""

    low: float
    high: float


class Weights(NamedTuple):
    """Weights of one block of resamples.

    Attributes:
        prompts: Each prompt's weight, 1 on average. Shape [B, N].
        won: Weight of the added won part, 1/2 on average. Shape [B].
        lost: The same of the added lost part. Shape [B].
    """

    prompts: Array
    won: Array
    lost: Array


def resample(num_prompts: int, *, num_resamples: int, seed: int) -> Iterator[Weights]:
    """Draw the weights of ``num_resamples`` resamples, in blocks that fit in memory.

    With one verdict a prompt the weighted share of wins is distributed as Beta(W + 1/2, L + 1/2), Jeffreys'
    interval of a proportion; with several it also knows how much the verdicts of one prompt resemble each other.

    Args:
        num_prompts: N, at least 1.
        num_resamples: How many resamples altogether.
        seed: Equal seeds give equal weights.

    Yields:
        Blocks of at most ``num_resamples`` rows.
    """
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_NUMBERS // max(num_prompts, 1))
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        prompts = rng.standard_exponential((rows, num_prompts))
        prior = rng.standard_gamma(PRIOR_EACH, (rows, 2))
        yield Weights(prompts, prior[:, 0], prior[:, 1])


def percentile_interval(values: Array, confidence: float) -> Interval:
    """Return the middle ``confidence`` of resampled values.

    >>> percentile_interval(np.arange(101.0), 0.5)
    Interval(low=25.0, high=75.0)
    """
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def widened_interval(interval: Interval, estimate: float, num_prompts: int, confidence: float) -> Interval:
    """Return an interval as wide as Student's t makes it: percentiles of few prompts are too narrow.

    The smooth bootstrap of n prompts has (n - 1) / (n + 1) of the variance that it should have, and knows nothing of
    the variance being estimated itself (Hesterberg 2015, "expanded percentile interval").

    Args:
        interval: From `percentile_interval`.
        estimate: What it is about, which stays where it is.
        num_prompts: n; with fewer than two there is no interval, and both ends are NaN.
        confidence: Of the interval.

    Example:
        >>> [round(end, 3) for end in widened_interval(Interval(-1.0, 2.0), 0.0, 32, 0.95)]
        [-1.074, 2.147]
    """
    from scipy.stats import norm, t

    if num_prompts < 2:
        return Interval(math.nan, math.nan)
    end = (1.0 + confidence) / 2.0
    factor = float(t.ppf(end, num_prompts - 1) / norm.ppf(end)) * math.sqrt(
        (num_prompts + 1) / (num_prompts - 1)
    )
    return Interval(
        estimate + factor * (interval.low - estimate), estimate + factor * (interval.high - estimate)
    )


def check_settings(*, confidence: float, num_resamples: int) -> None:
    """Refuse settings that give no interval.

    Raises:
        ConfigError: If ``confidence`` is outside (0, 1) or there are fewer than 100 resamples.
    """
    check_confidence(confidence)
    if num_resamples < 100:
        raise ConfigError(
            f"the bootstrap needs at least 100 resamples to know the ends of an interval, got {num_resamples}; "
            "2000 is usual"
        )


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that gives no interval.

    Raises:
        ConfigError: If it is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"statistics.confidence must lie in (0, 1), got {confidence}; 0.95 is usual")
