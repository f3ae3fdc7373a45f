"""How much a judge's verdict depends on which output it saw first.

Asking in both orders cancels such a bias out of the win rate; it stays a measure of how far the judge can be
trusted, and of what was lost where only one order was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import Comparison, Counts, distinct
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.statistics.win_rate import win_rate


@dataclass(frozen=True)
class PositionBias:
    """A judge's dependence on order.

    Attributes:
        judge: Who judged.
        first: Verdicts for the output shown first (A).
        second: Verdicts for the output shown second (B).
        first_share: A / (A + B); a half without bias and with orders balanced; NaN without a decisive verdict.
        first_interval: Its interval, prompts kept together.
        num_pairs: Questions with a valid verdict in both orders.
        consistent: Of those, the same model preferred twice, or two ties.
        half: One order a tie, the other not.
        flipped: The other model preferred when the order changed.
    """

    judge: str
    first: int
    second: int
    first_share: float
    first_interval: Interval
    num_pairs: int
    consistent: int
    half: int
    flipped: int

    @property
    def flip_rate(self) -> float:
        """Share of questions whose winner changed with the order; NaN where none was asked both ways."""
        return self.flipped / self.num_pairs if self.num_pairs else float("nan")

    @property
    def consistency(self) -> float:
        """Share of questions with the same verdict in both orders; NaN where none was asked both ways."""
        return self.consistent / self.num_pairs if self.num_pairs else float("nan")


def position_bias(
    judgements: Sequence[JudgementRecord], judge: str, *, confidence: float = 0.95
) -> PositionBias:
    """Measure one judge over all models.

    Args:
        judgements: Any judgements; those of other judges are passed over.
        judge: Whose judgements count.
        confidence: Of the interval.

    Example:
        >>> asked = [JudgementRecord("k1", "p", 0, "j", "new", "old", "A"),
        ...          JudgementRecord("k2", "p", 0, "j", "old", "new", "A")]
        >>> bias = position_bias(asked, "j")
        >>> bias.first_share, bias.flip_rate
        (1.0, 1.0)
    """
    by_prompt: dict[str, Counts] = {}
    winners: dict[tuple[str, int, frozenset[str]], dict[str, str | None]] = {}
    for record in distinct(judgements):
        if record.judge != judge:
            continue
        one = Counts(
            wins=record.verdict == "A",
            losses=record.verdict == "B",
            ties=record.verdict == "tie",
            invalid=record.verdict == "invalid",
        )
        by_prompt[record.id] = by_prompt.get(record.id, Counts()) + one
        if one.num_valid:
            question = (record.id, record.sample, frozenset((record.first, record.second)))
            winners.setdefault(question, {}).setdefault(record.first, record.winner)
    # "First" against "second" is a comparison like any other, and its interval has the same clusters.
    result = win_rate(
        Comparison("first", "second", judge, dict(sorted(by_prompt.items()))), confidence=confidence
    )
    both = [tuple(by_first.values()) for by_first in winners.values() if len(by_first) == 2]
    consistent = sum(one == two for one, two in both)
    half = sum((one is None) != (two is None) for one, two in both)
    return PositionBias(
        judge=judge,
        first=result.counts.wins,
        second=result.counts.losses,
        first_share=result.decisive,
        first_interval=result.decisive_interval,
        num_pairs=len(both),
        consistent=consistent,
        half=half,
        flipped=len(both) - consistent - half,
    )
