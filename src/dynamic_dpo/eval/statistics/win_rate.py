"""The win rate of a model against a baseline, with an interval and a test that know the prompts were a sample.

One definition everywhere: (W + T/2) / (W + L + T). Ties and invalid verdicts are always given beside it, for
both change what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.statistics.comparisons import Comparison, Counts
from dynamic_dpo.eval.statistics.rate_distribution import RateDistribution
from dynamic_dpo.eval.statistics.resampling import Interval, check_confidence


@dataclass(frozen=True)
class WinRate:
    """A model's win rate and all it was computed from.

    Attributes:
        model: Whose wins are counted.
        baseline: Against whom.
        judge: Who judged.
        counts: Wins, losses, ties and invalid verdicts over all judgements.
        prompts: The same by prompt: won, lost, tied, without a valid verdict.
        rate: (W + T/2) / (W + L + T); NaN without a valid judgement.
        interval: Where the rate over all prompts of this kind lies; (0, 1) without a valid judgement.
        decisive: W / (W + L): the rate where the judge saw a difference; NaN without one.
        decisive_interval: Where that one lies; (0, 1) without a decided judgement.
        p_value: Two-sided, of the claim that neither model is better. Below 1 - confidence exactly where the
            intervals leave out a half, which both do or neither.
        num_needed: Prompts like these with which a difference as large as the observed one would show in four of
            five evaluations; ``None`` where none was observed.
        confidence: Of both intervals.
    """

    model: str
    baseline: str
    judge: str
    counts: Counts
    prompts: Counts
    rate: float
    interval: Interval
    decisive: float
    decisive_interval: Interval
    p_value: float
    num_needed: int | None
    confidence: float

    @property
    def num_prompts(self) -> int:
        """Prompts with at least one valid judgement: what the interval rests on."""
        return self.prompts.num_valid


def win_rate(comparison: Comparison, *, confidence: float = 0.95) -> WinRate:
    """Compute the win rate of one comparison.

    Intervals and p-value are read from one distribution (`rate_distribution`), in which every prompt keeps all its
    judgements. How often they hold what they promise is measured in docs/evaluation.md.

    Args:
        comparison: What was judged.
        confidence: Share of such intervals that contain the true rate.

    Returns:
        The rate, its intervals and its test.

    Raises:
        ConfigError: If the confidence gives no interval.

    Example:
        >>> verdicts = {f"p{n}": Counts(wins=n > 8, losses=n <= 8) for n in range(29)}
        >>> result = win_rate(Comparison("new", "old", "judge", verdicts))
        >>> round(result.rate, 3), round(result.interval.low, 3), round(result.p_value, 3)
        (0.69, 0.501, 0.049)
    """
    check_confidence(confidence)
    counts = comparison.counts
    decided = [(c.wins, c.wins + c.losses) for c in comparison.by_prompt.values() if c.wins + c.losses]
    # The added prompt has as many judgements as a prompt has on average, in both: they answer one question.
    added = float(comparison.sizes.mean()) if counts.num_valid else 1.0
    whole = RateDistribution(comparison.points, comparison.sizes, added=added)
    without_ties = RateDistribution(*np.array(decided, dtype=np.float64).reshape(-1, 2).T, added=added)
    return WinRate(
        model=comparison.model,
        baseline=comparison.baseline,
        judge=comparison.judge,
        counts=counts,
        prompts=comparison.prompts,
        rate=counts.rate,
        interval=whole.interval(confidence),
        decisive=counts.wins / (counts.wins + counts.losses) if decided else math.nan,
        decisive_interval=without_ties.interval(confidence),
        p_value=whole.even_p_value(),
        num_needed=_num_needed(comparison, confidence),
        confidence=confidence,
    )


def win_rate_by_category(
    comparison: Comparison,
    categories: Mapping[str, str | None],
    *,
    confidence: float = 0.95,
) -> dict[str, WinRate]:
    """Compute the win rate in each category of prompts.

    Args:
        comparison: What was judged.
        categories: Prompt id to category; prompts without one are left out.
        confidence: As for `win_rate`.

    Returns:
        Category to win rate, in the categories' sorted order.
    """
    groups: dict[str, list[str]] = {}
    for prompt in comparison.by_prompt:
        category = categories.get(prompt)
        if category is not None:
            groups.setdefault(category, []).append(prompt)
    return {
        category: win_rate(comparison.only(ids), confidence=confidence)
        for category, ids in sorted(groups.items())
    }


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a proportion; ``(0, 1)`` without a trial.

    Args:
        successes: Successes, whole or effective.
        trials: Trials, whole or effective.
        confidence: Share of such intervals that contain the true proportion.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    # statsmodels and the pandas beneath it take a second to load; most importers of this module never ask.
    from statsmodels.stats.proportion import proportion_confint

    if trials <= 0:
        return Interval(0.0, 1.0)
    low, high = proportion_confint(successes, trials, alpha=1.0 - confidence, method="wilson")
    # The formula leaves 1e-17 where it means 0, and 1 - 1e-16 where it means 1.
    low = 0.0 if successes <= 0 else float(low)
    high = 1.0 if successes >= trials else float(high)
    return Interval(max(low, 0.0), min(high, 1.0))


def prompts_needed(
    difference: float, *, spread: float = 0.5, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Return how many prompts show a difference from 50 %.

    Args:
        difference: Distance of the true win rate from a half, as 0.03 for 53 %.
        spread: How far the prompts' own win rates lie from a half, as a root mean square: 0.5 with one decided
            verdict a prompt; less with ties, both orders or several outputs. At least ``difference``.
        power: Chance that the interval leaves out 50 %.
        confidence: Of the interval.

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> prompts_needed(0.03), prompts_needed(0.03, spread=0.3), prompts_needed(0.1)
        (2178, 783, 194)
    """
    from scipy.stats import norm

    if not (0 < difference <= spread <= 0.5 and 0 < power < 1 and 0 < confidence < 1):
        raise ConfigError(
            "difference and spread must lie in (0, 0.5] with spread not below difference, power and confidence in "
            f"(0, 1), got {difference}, {spread}, {power} and {confidence}"
        )
    surprising = float(norm.ppf((1.0 + confidence) / 2.0)) * spread
    around_the_mean = float(norm.ppf(power)) * math.sqrt(spread**2 - difference**2)
    return math.ceil(((surprising + around_the_mean) / difference) ** 2)


def _num_needed(comparison: Comparison, confidence: float) -> int | None:
    """Return `prompts_needed` for the observed rate and the spread of the observed prompts."""
    leads = comparison.points - comparison.sizes / 2
    if not leads.sum():
        return None
    size = float(comparison.sizes.mean())
    difference = abs(float(leads.mean())) / size
    spread = math.sqrt(float((leads**2).mean())) / size
    # Prompts with more verdicts than others can lie further from a half than any rate does.
    return prompts_needed(difference, spread=min(max(spread, difference), 0.5), confidence=confidence)
