"""Where the win rate over all prompts lies: one distribution from which both the interval and the p-value are read.

Each prompt, with all its verdicts, gets a random weight (Rubin 1981, the Bayesian bootstrap), and one further prompt
is added. The weighted rate is a ratio of sums of gamma variables, whose distribution is computed here instead of
drawn: Imhof's inversion of a characteristic function (Biometrika 48, 1961). Interval and test therefore cannot
contradict each other, and no seed moves either of them.
"""

from __future__ import annotations

import math

import numpy as np

from dynamic_dpo.eval.statistics.resampling import Array, Interval

# Of the smallest step in which wins and losses can change places: what the added prompt says against a claim beyond
# an even split. 0 would give Jeffreys' interval, whose test at 5 % errs in more than that with few prompts; a half
# the exact one of Clopper and Pearson, which is as much too wide. Many verdicts a prompt make the step, and with it
# the correction, small.
CORRECTION = 0.25
# Distances of the mean from 0, in standard deviations, beyond which a probability is 0 or 1 to any precision shown.
_BEYOND_DOUBT = 38.0


class RateDistribution:
    """Where the rate ``points / sizes`` of all prompts lies, by what was seen on some of them.

    Args:
        points: Wins and half the ties of each prompt. Shape [N].
        sizes: Verdicts counted for each prompt, above 0. Shape [N].
        added: Verdicts of the added prompt.

    Example:
        >>> won_8_of_10 = RateDistribution(np.repeat([1.0, 0.0], [8, 2]), np.ones(10), added=1.0)
        >>> low, high = won_8_of_10.interval(0.95)
        >>> round(low, 3), round(high, 3), round(won_8_of_10.even_p_value(), 3)  # mid-p 0.065, exact 0.109
        (0.47, 0.966, 0.077)
    """

    def __init__(self, points: Array, sizes: Array, *, added: float) -> None:
        # Most prompts have come to one of a few outcomes, which are computed with once.
        outcomes, counts = np.unique(np.stack([points, sizes]), axis=1, return_counts=True)
        self._points, self._sizes = outcomes
        self._counts = counts.astype(np.float64)
        self._added = added
        # Wins minus losses of every prompt are whole numbers; what divides them all is the step of their sum.
        leads = np.abs(np.rint(2 * self._points - self._sizes)).astype(np.int64)
        self._correction = CORRECTION * float(np.gcd.reduce(leads)) / added if len(points) else 0.0

    def interval(self, confidence: float) -> Interval:
        """Return the rate's interval; ``(0, 1)`` without a prompt.

        With one verdict a prompt and no ties its ends are quantiles of Beta(W + 1/4, L + 3/4) and
        Beta(W + 3/4, L + 1/4).

        Args:
            confidence: Share of such intervals that contain the true rate.
        """
        total = float(self._counts @ self._sizes)
        if not total:
            return Interval(0.0, 1.0)
        tail = (1.0 - confidence) / 2.0
        rate = float(self._counts @ self._points) / total
        # The ends of the scale belong to the interval where all that was seen lies there.
        low = 0.0 if rate <= 0 else self._quantile(tail, rate, -1)
        high = 1.0 if rate >= 1 else self._quantile(1.0 - tail, rate, 1)
        return Interval(low, high)

    def even_p_value(self) -> float:
        """Return the two-sided p-value of the claim that the rate is a half; 1 without a prompt.

        It is below ``1 - confidence`` exactly where `interval` with that confidence leaves a half out. With one
        verdict a prompt it lies between the mid-p and the p-value of the exact sign test; tied prompts change
        nothing.
        """
        is_lower, is_higher = self._below(0.5, -1), 1.0 - self._below(0.5, 1)
        return min(1.0, 2.0 * min(is_lower, is_higher))

    def _below(self, rate: float, side: int) -> float:
        """Return the probability that the rate lies below ``rate``, for its lower end (-1) or its upper one (1)."""
        won = 0.5 + side * self._correction
        ends = self._added * np.array([1.0 - rate, -rate])
        return _gamma_sum_below_zero(
            np.concatenate([self._points - rate * self._sizes, ends]),
            np.concatenate([self._counts, [won, 1.0 - won]]),
        )

    def _quantile(self, probability: float, rate: float, side: int) -> float:
        from scipy.optimize import brentq

        def excess(end: float) -> float:
            return self._below(end, side) - probability

        # From the observed rate outwards: far from it the probability takes longest to compute.
        reach = 2.0 / math.sqrt(float(self._counts.sum()))
        near, far = rate, min(1.0, max(0.0, rate + side * reach))
        while 0.0 < far < 1.0 and excess(far) * side < 0:
            near, far, reach = far, min(1.0, max(0.0, far + side * reach)), 2.0 * reach
        if excess(near) * excess(far) > 0:
            near = 1.0 - float(side > 0)
        return float(brentq(excess, *sorted((near, far)), xtol=1e-12))


def _gamma_sum_below_zero(scales: Array, shapes: Array) -> float:
    """Return P(sum of scales x Gamma(shapes) < 0), to about 1e-12."""
    deviation = math.sqrt(float(shapes @ scales**2))
    distance = float(shapes @ scales) / deviation
    if abs(distance) > _BEYOND_DOUBT:
        return float(distance < 0)
    # With t = exp(pi / 2 sinh x) the integrand vanishes doubly exponentially at both ends, and the plain sum of its
    # values converges faster than any power of the step; the step shrinks where the integrand turns faster.
    step = 0.06 / max(0.3 * abs(distance), 1.0)
    x = np.arange(-3.9, 3.9, step)
    angles = np.outer(np.exp(np.pi / 2 * np.sinh(x)), scales / deviation)
    integrand = np.sin(np.arctan(angles) @ shapes) * np.exp(-0.5 * (np.log1p(angles**2) @ shapes))
    integral = step * float(integrand @ (np.pi / 2 * np.cosh(x)))
    return min(1.0, max(0.0, 0.5 - integral / math.pi))
