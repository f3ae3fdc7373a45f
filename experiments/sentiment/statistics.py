"""What is said of an arm: differences from plain DPO by prompt, and win rates against DPO at the same divergence.

Seeds are few and prompts many: a difference is averaged over the seeds for each prompt, and tests and intervals are
over prompts. They say what these trained models do on other prompts of the kind; how much trainings differ, the
seeds' own figures show, which stand beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from experiments.bandit.comparison import signed_rank_p

Line = Mapping[str, Any]
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over prompts.

    Attributes:
        mean: The mean.
        low: Lower end of the 95 % bootstrap interval over prompts.
        high: Its upper end.
        p_value: Wilcoxon's signed-rank test of 0, two-sided, over prompts, not corrected.
        by_seed: The seeds' own means.
    """

    mean: float
    low: float
    high: float
    p_value: float
    by_seed: tuple[float, ...]


def estimate(values: np.ndarray) -> Estimate:
    """Summarise values, [seeds, prompts], whose prompts are drawn and whose seeds are given.

    Example:
        >>> estimate(np.array([[1.0, 1.0], [3.0, 3.0]]))[:3]
        (2.0, 2.0, 2.0)
    """
    by_prompt = values.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(by_prompt), size=(RESAMPLES, len(by_prompt)))
    low, high = np.quantile(by_prompt[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(
        float(by_prompt.mean()),
        float(low),
        float(high),
        signed_rank_p(list(by_prompt)),
        tuple(float(value) for value in values.mean(axis=1)),
    )


def wins_over(line: Line, other: Line) -> np.ndarray:
    """Return, [prompts], how often an answer of one line scores above one of the other, ties half, over all pairs.

    Example:
        >>> wins_over({"scores": [[1.0, 0.0]]}, {"scores": [[0.0, 0.5]]})
        array([0.625])
    """
    mine, theirs = np.asarray(line["scores"])[:, :, None], np.asarray(other["scores"])[:, None, :]
    return np.asarray((np.sign(mine - theirs).mean(axis=(1, 2)) + 1.0) / 2.0)


def divergence(line: Line) -> float:
    """Return a line's KL divergence from the model before training, nats an answer."""
    return float(np.mean(line["kls"]))


def wins_at_equal_divergence(line: Line, frontier: Sequence[Line]) -> np.ndarray | None:
    """Return, [prompts], the win rate against a mixture of DPO's models that has the line's own divergence.

    Between two models of the frontier, of divergences k0 <= k <= k1, stands the policy that answers as the second
    with chance (k - k0) / (k1 - k0) and else as the first. Its divergence is at most k, since KL is convex.

    Args:
        line: The arm.
        frontier: Lines of DPO with the model before training among them.

    Returns:
        ``None`` where the arm has gone farther than all of the frontier.
    """
    points = sorted(frontier, key=divergence)
    at = divergence(line)
    for near, far in itertools.pairwise(points):
        low, high = divergence(near), divergence(far)
        if low <= at <= high and high > low:
            share = (at - low) / (high - low)
            return (1.0 - share) * wins_over(line, near) + share * wins_over(line, far)
    return None
