"""How numbers and findings are put into words, so that page, Markdown and alarms write them alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from dynamic_dpo.eval.report.summary import PairSummary
from dynamic_dpo.eval.statistics.agreement import Agreement
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.statistics.win_rate import WinRate


def percent(value: float) -> str:
    """Write a share.

    >>> percent(0.6249), percent(float("nan"))
    ('62.5 %', '–')
    """
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def percent_interval(interval: Interval) -> str:
    """Write the interval of a share.

    >>> percent_interval(Interval(0.5004, 0.732))
    '50.0 to 73.2 %'
    """
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def p_value(value: float) -> str:
    """Write a p-value.

    >>> p_value(0.0004), p_value(0.0312)
    ('< 0.001', '0.031')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def kappa_words(agreement: Agreement) -> str:
    """Write how far two judges agree beyond chance.

    >>> kappa_words(Agreement(("a", "b"), 40, 0, 0.9, 0.7952, Interval(0.6, 0.99)))
    '0.80 (0.60 to 0.99)'
    """
    if math.isnan(agreement.kappa):
        return "–"
    low, high = agreement.kappa_interval
    return f"{agreement.kappa:.2f} ({low:.2f} to {high:.2f})"


def verdict_sentence(pair: PairSummary, *, num_pairs: int = 1, name_judge: bool = False) -> str:
    """Say in one sentence what a comparison found, and no more than it found.

    Args:
        pair: The comparison.
        num_pairs: How many comparisons of this judge are reported together.
        name_judge: Whether there are several judges.
    """
    result = pair.overall
    model, baseline = result.model, result.baseline
    by = f", by {result.judge}" if name_judge else ""
    if not result.num_prompts:
        return f"Nothing is known about {model} against {baseline}{by}: no judgement was valid."
    on = f"on {result.num_prompts:,} prompt{'' if result.num_prompts == 1 else 's'}{by}"
    low, high = result.interval
    apart = f"{model} and {baseline} cannot be told apart {on}"
    if low <= 0.5 <= high:
        found = f"{apart}: the interval holds everything from {percent(low)} to {percent(high)}."
        return f"{found} {_needed(result)}" if result.num_needed else found
    better, worse = (model, baseline) if result.rate > 0.5 else (baseline, model)
    least = low if result.rate > 0.5 else 1.0 - high
    # One of many intervals leaves out 50 % by chance; the corrected test says whether this one may be such.
    if pair.p_holm > 1.0 - result.confidence:
        return (
            f"{apart} once {num_pairs} comparisons are allowed for (p {p_value(pair.p_holm)}): by its own interval "
            f"alone, {better} would be preferred in at least {percent(least)} of cases."
        )
    return f"{better} is preferred to {worse} {on}: in at least {percent(least)} of cases, by the interval."


def _needed(result: WinRate) -> str:
    return (
        f"If the difference were as large as it looks ({100 * abs(result.rate - 0.5):.1f} points), "
        f"{result.num_needed:,} prompts like these would show it in four of five evaluations."
    )


def finding_sentences(pairs: Sequence[PairSummary]) -> list[str]:
    """Return the sentence of every comparison."""
    by_judge = Counter(pair.overall.judge for pair in pairs)
    return [
        verdict_sentence(pair, num_pairs=by_judge[pair.overall.judge], name_judge=len(by_judge) > 1)
        for pair in pairs
    ]
