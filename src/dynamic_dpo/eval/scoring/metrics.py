"""What a preference-trained policy's own log-probabilities say: implicit rewards, and how far it left its reference.

Arrays in, numbers out. Margins are in nats and without beta, as everywhere; only a reward carries beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.statistics.win_rate import wilson_interval


@dataclass(frozen=True)
class PreferenceSummary:
    """Implicit rewards of a policy on held-out pairs.

    Attributes:
        num_pairs: Pairs with a finite margin.
        num_not_finite: Pairs left out because their margin is NaN or infinite.
        accuracy: Share of pairs whose chosen completion has the higher implicit reward; a margin of 0 counts half.
        accuracy_interval: Wilson's interval; pairs are taken as independent.
        mean_margin: Mean margin in nats, without beta.
        margin_error: Its standard error; NaN for one pair.
        median_margin: Median margin in nats.
        beta: The beta of the reward, if given.
        reward_margin: beta x ``mean_margin``; ``None`` without beta.
    """

    num_pairs: int
    num_not_finite: int
    accuracy: float
    accuracy_interval: Interval
    mean_margin: float
    margin_error: float
    median_margin: float
    beta: float | None
    reward_margin: float | None


def summarise_margins(
    margins: ArrayLike, *, beta: float | None = None, confidence: float = 0.95
) -> PreferenceSummary:
    """Summarise the margins of held-out pairs.

    Args:
        margins: Chosen minus rejected log-ratio, nats, without beta. Shape [N].
        beta: Strength of the tie to the reference that the policy was trained with, for rewards.
        confidence: Of the accuracy's interval.

    Raises:
        DataError: If no margin is finite.

    Example:
        >>> summary = summarise_margins([2.0, 1.0, 0.0, -1.0], beta=0.1)
        >>> summary.accuracy, summary.mean_margin, summary.reward_margin
        (0.625, 0.5, 0.05)
    """
    values = np.asarray(margins, dtype=np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise DataError(
            f"no margin to summarise: {len(values)} were given and none is finite; score the pairs first"
        )
    right = float((finite > 0).sum() + (finite == 0).sum() / 2)
    mean = float(finite.mean())
    return PreferenceSummary(
        num_pairs=len(finite),
        num_not_finite=len(values) - len(finite),
        accuracy=right / len(finite),
        accuracy_interval=wilson_interval(right, len(finite), confidence),
        mean_margin=mean,
        margin_error=_standard_error(finite),
        median_margin=float(np.median(finite)),
        beta=beta,
        reward_margin=None if beta is None else beta * mean,
    )


@dataclass(frozen=True)
class SequenceKL:
    """Estimates of KL(policy || reference) per sequence, from outputs that the policy sampled.

    Attributes:
        k1: Mean log-ratio, nats: unbiased, noisy, may be negative by chance.
        k1_error: Its standard error.
        k3: Mean of r - 1 - log r with r = reference/policy probability, nats: never negative and unbiased too, but
            carried by a few sequences where the two models differ much.
        k3_error: Its standard error; not to be trusted where ``effective_size`` is small.
        effective_size: How many equally weighted sequences the weights r amount to: (sum r)^2 / sum r^2.
        num_sequences: Sequences.
    """

    k1: float
    k1_error: float
    k3: float
    k3_error: float
    effective_size: float
    num_sequences: int


def sequence_kl(policy_logps: ArrayLike, reference_logps: ArrayLike) -> SequenceKL:
    """Estimate the KL divergence of a policy from its reference.

    Both estimators are Schulman's (2020, "Approximating KL divergence"). They are right only for outputs that
    the policy sampled itself, at temperature 1 and without a nucleus; for others they estimate something else.

    Args:
        policy_logps: Summed log-probability of each sampled output under the policy, nats. Shape [N].
        reference_logps: The same under the reference. Shape [N].

    Raises:
        DataError: If the shapes differ, are empty, or a value is not finite.

    Example:
        >>> same = sequence_kl([-3.0, -5.0], [-3.0, -5.0])
        >>> same.k1, same.k3, same.effective_size
        (0.0, 0.0, 2.0)
    """
    policy, reference = (np.asarray(x, dtype=np.float64).ravel() for x in (policy_logps, reference_logps))
    if policy.shape != reference.shape or not len(policy):
        raise DataError(
            f"sequence_kl needs one log-probability of each model for every output, got {len(policy)} of the "
            f"policy and {len(reference)} of the reference"
        )
    logratio = policy - reference
    if not np.isfinite(logratio).all():
        raise DataError(
            f"{int((~np.isfinite(logratio)).sum())} of {len(logratio)} log-probabilities are NaN or infinite; "
            "leave those outputs out and say so"
        )
    with np.errstate(over="ignore"):
        k3 = np.expm1(-logratio) + logratio
    # Shifted before exp, for a log-ratio of -800 is possible and its weight is not representable.
    weights = np.exp(-logratio - (-logratio).max())
    return SequenceKL(
        k1=float(logratio.mean()),
        k1_error=_standard_error(logratio),
        k3=float(k3.mean()),
        k3_error=_standard_error(k3) if np.isfinite(k3).all() else math.inf,
        effective_size=float(weights.sum() ** 2 / (weights**2).sum()),
        num_sequences=len(logratio),
    )


@dataclass(frozen=True)
class FrontierPoint:
    """One checkpoint on the plane of reward and KL.

    Attributes:
        name: The checkpoint's name.
        kl: KL to the reference, nats a sequence.
        reward: What was gained for it: a win rate, a score or a mean reward; the same measure for all points.
        is_efficient: No other point has at least this reward for at most this KL (and is better in one of them).
    """

    name: str
    kl: float
    reward: float
    is_efficient: bool = False


def reward_kl_frontier(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Order checkpoints by KL and mark those that no other one beats.

    Args:
        points: Checkpoints; their ``is_efficient`` is not read.

    Raises:
        DataError: If a value is not finite.

    Example:
        >>> a, b, c = FrontierPoint("a", 1.0, 0.5), FrontierPoint("b", 2.0, 0.4), FrontierPoint("c", 3.0, 0.9)
        >>> [(point.name, point.is_efficient) for point in reward_kl_frontier([c, b, a])]
        [('a', True), ('b', False), ('c', True)]
    """
    for point in points:
        if not (math.isfinite(point.kl) and math.isfinite(point.reward)):
            raise DataError(
                f"checkpoint {point.name!r} has kl {point.kl} and reward {point.reward}; both must be finite"
            )
    return [
        FrontierPoint(point.name, point.kl, point.reward, not any(_beats(other, point) for other in points))
        for point in sorted(points, key=lambda point: (point.kl, point.reward, point.name))
    ]


def _beats(other: FrontierPoint, point: FrontierPoint) -> bool:
    at_least = other.kl <= point.kl and other.reward >= point.reward
    return at_least and (other.kl, other.reward) != (point.kl, point.reward)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
