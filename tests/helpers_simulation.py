"""Judges with known habits, and how often the intervals and tests of simulated evaluations are right about them.

``PYTHONPATH=src python tests/helpers_simulation.py`` prints the table of docs/evaluation.md (some ten minutes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dynamic_dpo.eval.statistics.comparisons import Counts
from dynamic_dpo.eval.statistics.win_rate import WinRate, win_rate
from helpers_judgements import comparison

LAYOUTS: dict[str, dict[str, Any]] = {
    "1 output, one order": {"num_samples": 1, "both_orders": False},
    "1 output, both orders": {"num_samples": 1, "both_orders": True},
    "4 outputs, one order": {"num_samples": 4, "both_orders": False},
    "4 outputs, both orders": {"num_samples": 4, "both_orders": True},
}


class SimulatedJudge:
    """Prefers "new" with a probability drawn per prompt, leans towards the first output, ties and fails at times.

    Args:
        mean: Average probability of preferring "new".
        taste: Beta concentration of the probability over prompts; 0: the same for all.
        bias: Added to the probability of whichever stands first.
        tie: Share of ties.
        invalid: Share of replies without a verdict.
    """

    def __init__(
        self, mean: float, *, taste: float = 0.0, bias: float = 0.0, tie: float = 0.0, invalid: float = 0.0
    ) -> None:
        self.mean, self.taste, self.bias, self.tie, self.invalid = mean, taste, bias, tie, invalid

    def verdicts(
        self, rng: np.random.Generator, num_prompts: int, num_samples: int, *, both_orders: bool
    ) -> NDArray[np.int64]:
        """Wins, losses, ties and invalid of each prompt: [N, 4]; one order is drawn at random."""
        chance = np.full(num_prompts, self.mean)
        if self.taste:
            chance = rng.beta(self.mean * self.taste, (1 - self.mean) * self.taste, num_prompts)
        shape = (num_prompts, num_samples, 2 if both_orders else 1)
        stands_first = np.broadcast_to([1, -1], shape) if both_orders else rng.choice([1, -1], shape)
        prefers = np.clip(chance[:, None, None] + self.bias * stands_first, 0, 1)
        kind = np.where(rng.random(shape) < prefers, 0, 1)
        kind = np.where(rng.random(shape) < self.tie, 2, kind)
        kind = np.where(rng.random(shape) < self.invalid, 3, kind)
        return np.stack([(kind == k).sum(axis=(1, 2)) for k in range(4)], axis=1)

    @property
    def decisive_rate(self) -> float:
        """The true share of decided verdicts for "new"; not ``mean`` where the bias meets 0 or 1."""
        chance = np.array([self.mean])
        if self.taste:
            places = (np.arange(200_000) + 0.5) / 200_000
            chance = stats.beta.ppf(places, self.mean * self.taste, (1 - self.mean) * self.taste)
        sides = [np.clip(chance + side * self.bias, 0, 1).mean() for side in (1, -1)]
        return float(np.mean(sides))

    @property
    def rate(self) -> float:
        """The true win rate, a tie counting half."""
        return (1 - self.tie) * self.decisive_rate + self.tie / 2


class Kept(NamedTuple):
    """Shares of simulated evaluations.

    Attributes:
        rate: In which the interval held the true win rate.
        decisive: In which its interval held the true share of decided verdicts.
        found: In which the p-value was below 5 %.
        contradicted: In which an interval and the p-value gave two answers.
    """

    rate: float
    decisive: float
    found: float
    contradicted: float


def kept_promises(
    judge: SimulatedJudge, num_prompts: int, layout: dict[str, Any], *, num_evaluations: int, seed: int
) -> Kept:
    """Evaluate again and again, and count how often what was said is true."""
    rng, rate, decisive = np.random.default_rng(seed), judge.rate, judge.decisive_rate
    counts = np.zeros(4)
    for _ in range(num_evaluations):
        rows = judge.verdicts(rng, num_prompts, **layout).tolist()
        result = win_rate(comparison(*(Counts(*row) for row in rows)))
        counts += (
            result.interval.low <= rate <= result.interval.high,
            result.decisive_interval.low <= decisive <= result.decisive_interval.high,
            result.p_value < 0.05,
            not answers_agree(result),
        )
    return Kept(*map(float, counts / num_evaluations))


def answers_agree(result: WinRate) -> bool:
    """Return whether both intervals and the p-value give one answer."""
    leaves_out = not result.interval.low <= 0.5 <= result.interval.high
    without_ties = not result.decisive_interval.low <= 0.5 <= result.decisive_interval.high
    return leaves_out == without_ties == (result.p_value < 1 - result.confidence)


def cells() -> Iterable[tuple[int, str, float, float]]:
    """Return prompts, layout, mean and ties of every simulated kind of evaluation."""
    return product((32, 100, 300), LAYOUTS, (0.5, 0.7), (0.0, 0.3))


def simulated(cell: tuple[int, str, float, float], *, num_evaluations: int = 1000) -> Kept:
    """Simulate one of them: prompts of differing taste, a judge that leans to the first, 10 % invalid verdicts."""
    num_prompts, layout, mean, tie = cell
    judge = SimulatedJudge(mean, taste=4.0, bias=0.1, tie=tie, invalid=0.1)
    seed = 1000 * num_prompts + 100 * list(LAYOUTS).index(layout) + round(10 * (mean + tie))
    return kept_promises(judge, num_prompts, LAYOUTS[layout], num_evaluations=num_evaluations, seed=seed)


def _shown(found: list[float]) -> str:
    return f"{100 * min(found):.1f} to {100 * max(found):.1f} %"


def print_table(measure: Callable[[tuple[int, str, float, float]], Kept] = simulated) -> None:
    """Print a row for every number of prompts and layout."""
    by_row: dict[tuple[int, str], list[tuple[float, Kept]]] = {}
    for cell in cells():
        by_row.setdefault(cell[:2], []).append((cell[2], measure(cell)))
        print(cell, by_row[cell[:2]][-1], flush=True)
    for (num_prompts, layout), found in by_row.items():
        wrong = [kept.found for mean, kept in found if mean == 0.5]
        print(
            f"| {num_prompts} | {layout} | {_shown([kept.rate for _, kept in found])} "
            f"| {_shown([kept.decisive for _, kept in found])} | {_shown(wrong)} "
            f"| {sum(kept.contradicted for _, kept in found):g} |"
        )


if __name__ == "__main__":
    print_table()
