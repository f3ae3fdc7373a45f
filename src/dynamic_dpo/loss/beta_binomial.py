"""The law of exceedances behind the calibrated risk test, and the score that is fair under it.

If W past margins and the n margins of a batch are exchangeable and without ties, the number of batch margins
above the j-th smallest past one is BetaBinomial(n; W + 1 - j, j), whatever the margins' distribution
(Wilks, 1942, "Statistical prediction with special reference to the problem of tolerance limits").
Pure arithmetic in float64.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from dynamic_dpo.loss.risk import centred_scores, check_delta


class ReferenceWindow(NamedTuple):
    """How many past margins the test looks back on, and which of them is the threshold.

    Attributes:
        size: Number W of past margins.
        rank: The threshold's rank j when it is exact, else its floor. The smallest margin has rank 1.
        chance_above: Probability with which rank ``j + 1`` is drawn instead; 0 where the rank is exact.
    """

    size: int
    rank: int
    chance_above: float


def reference_window(n: int, delta: float, multiple: int) -> ReferenceWindow:
    """Choose the reference window for batches of ``n`` margins.

    ``W + 1`` is the smallest number from ``multiple * n`` on for which ``(W + 1)(1 - delta)`` is an integer, so
    that a rank exists whose expected rate of exceedance is ``delta`` exactly. Where the next such number is
    further away than ``max(100, multiple * n)``, W + 1 is ``multiple * n`` (or the first number that leaves a
    rank on either side) and the rank is drawn between floor and ceiling so that the mean is right.

    Args:
        n: Margins in a controller batch, at least 1.
        delta: Tolerated rate of exceedance, in (0, 1). Taken at its decimal face value.
        multiple: How many batches the window spans at least.

    Returns:
        The window's size and the threshold's rank.

    Raises:
        ConfigError: If ``delta`` is outside (0, 1).
        ValueError: If ``n`` or ``multiple`` is below 1.

    Example:
        >>> reference_window(16, 0.1, multiple=20)
        ReferenceWindow(size=319, rank=288, chance_above=0.0)
    """
    check_delta(delta)
    if n < 1 or multiple < 1:
        raise ValueError(f"n and multiple must be at least 1, got n {n} and multiple {multiple}")
    keep = 1 - Fraction(repr(float(delta)))
    start = multiple * n
    # (W + 1) * keep is an integer exactly when the reduced denominator divides W + 1.
    exact = math.ceil(Fraction(start, keep.denominator)) * keep.denominator
    if exact - start <= max(100, start):
        return ReferenceWindow(exact - 1, int(exact * keep), 0.0)
    smallest = max(start, math.ceil(1 / keep), math.ceil(1 / (1 - keep)))
    rank = smallest * keep
    floor = math.floor(rank)
    return ReferenceWindow(smallest - 1, floor, float(rank - floor))


@lru_cache(maxsize=4096)
def exceedance_law(n: int, size: int, rank: int) -> tuple[float, ...]:
    """Return ``P(K = k)`` for k = 0 … n: how many of n new margins exceed the threshold.

    Args:
        n: Margins in the batch.
        size: Number W of past margins.
        rank: Rank j of the threshold among them, 1 ≤ j ≤ W.

    Returns:
        The probabilities of BetaBinomial(n; W + 1 - j, j); they sum to 1.

    Raises:
        ValueError: If ``rank`` is not between 1 and ``size`` or ``n`` is below 1.

    Example:
        >>> law = exceedance_law(1, size=9, rank=9)  # one new margin beats the largest of nine: 1 in 10
        >>> [round(probability, 12) for probability in law]
        [0.9, 0.1]
    """
    if n < 1 or not 1 <= rank <= size:
        raise ValueError(f"need n >= 1 and 1 <= rank <= size, got n {n}, rank {rank}, size {size}")
    above, below = size + 1 - rank, rank
    # Ratios from the mode outwards lose no digits, where differences of lgamma would lose five.
    mode = min(n, round(n * above / (above + below)))
    weights = [0.0] * (n + 1)
    weights[mode] = 1.0
    for k in range(mode, n):
        weights[k + 1] = weights[k] * ((n - k) * (above + k)) / ((k + 1) * (below + n - k - 1))
    for k in range(mode, 0, -1):
        weights[k - 1] = weights[k] * (k * (below + n - k)) / ((n - k + 1) * (above + k - 1))
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


@lru_cache(maxsize=4096)
def exceedance_scores(n: int, size: int, rank: int) -> tuple[float, ...]:
    """Return the score ``s(k) = P(K < k) - P(K > k)`` for k = 0 … n.

    Its mean under the law is 0 and ``|s| <= 1``: on margins that carry no signal beta does not drift.

    Example:
        >>> [round(s, 3) for s in exceedance_scores(16, size=319, rank=288)[:6]]
        [-0.807, -0.288, 0.305, 0.713, 0.907, 0.976]
    """
    return centred_scores(exceedance_law(n, size, rank))
