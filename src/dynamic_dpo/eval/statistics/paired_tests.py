"""McNemar's test of two methods with a common baseline, and Holm's correction for several tests.

A prompt counts once, by its judgements taken together; prompts that both or neither won say nothing about a
direction. Whether a model is better than the baseline itself is the win rate's own test (``rate_distribution``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.statistics.comparisons import Comparison


@dataclass(frozen=True)
class PairedTest:
    """An exact two-sided test on prompts that two models share.

    Attributes:
        name: The question, such as ``one against two, by wins over base``.
        better: Prompts that speak for the first model.
        worse: Prompts that speak for the second.
        equal: Prompts that speak for neither.
        p_value: Chance of a split at least as uneven, if neither were better; 1 without an uneven prompt.
    """

    name: str
    better: int
    worse: int
    equal: int
    p_value: float


def mcnemar_test(first: Comparison, second: Comparison) -> PairedTest:
    """Test whether one method beats a common baseline on more prompts than another method does.

    Args:
        first: One method against the baseline.
        second: Another method against the same baseline, by the same judge.

    Returns:
        McNemar's exact test on the prompts that both were judged on: ``better`` counts those that only the first
        method won.

    Raises:
        DataError: If the baselines or the judges differ: the prompts would not be paired.

    Example:
        >>> from dynamic_dpo.eval.statistics.comparisons import Counts
        >>> won, lost = Counts(wins=1), Counts(losses=1)
        >>> one = Comparison("one", "base", "judge", {"p": won, "q": won, "r": lost})
        >>> two = Comparison("two", "base", "judge", {"p": won, "q": lost, "r": lost})
        >>> mcnemar_test(one, two)
        PairedTest(name='one against two, by wins over base', better=1, worse=0, equal=2, p_value=1.0)
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if (first.baseline, first.judge) != (second.baseline, second.judge):
        raise DataError(
            f"{first.model!r} was compared with {first.baseline!r} by {first.judge!r}, but {second.model!r} with "
            f"{second.baseline!r} by {second.judge!r}; a paired test needs one baseline and one judge"
        )
    table = [[0, 0], [0, 0]]
    for prompt in first.by_prompt.keys() & second.by_prompt.keys():
        one, two = first.by_prompt[prompt], second.by_prompt[prompt]
        if one.num_valid and two.num_valid:
            table[one.wins <= one.losses][two.wins <= two.losses] += 1
    better, worse = table[0][1], table[1][0]
    p_value = float(mcnemar(table, exact=True).pvalue) if better + worse else 1.0
    name = f"{first.model} against {second.model}, by wins over {first.baseline}"
    return PairedTest(name, better, worse, table[0][0] + table[1][1], p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values of several tests, so that all of them together err in 5 of 100 cases and not each.

    Args:
        p_values: Name to p-value.

    Returns:
        Name to Holm's adjusted p-value, in the given order.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    # By hand: statsmodels' multipletests collects the garbage of the whole program at every call, 0.2 s each.
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
