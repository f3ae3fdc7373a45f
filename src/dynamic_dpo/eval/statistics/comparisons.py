"""Judgements gathered into what they say about two models: wins, losses, ties and invalid verdicts, per prompt.

A prompt is the unit that was drawn at random; its orders and samples belong together and are kept together
(they resemble each other, so counting them as independent would make every interval too narrow). Rates, intervals
and tests are computed from these counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord

VERDICTS = ("A", "B", "tie", "invalid")


@dataclass(frozen=True)
class Counts:
    """How often a model won, lost, tied, and how often the judge gave no usable verdict.

    Example:
        >>> Counts(wins=5, losses=2, ties=2, invalid=1).rate
        0.6666666666666666
    """

    wins: int = 0
    losses: int = 0
    ties: int = 0
    invalid: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.wins + other.wins,
            self.losses + other.losses,
            self.ties + other.ties,
            self.invalid + other.invalid,
        )

    @property
    def num_valid(self) -> int:
        """Judgements with a verdict: W + L + T."""
        return self.wins + self.losses + self.ties

    @property
    def points(self) -> float:
        """W + T/2."""
        return self.wins + self.ties / 2

    @property
    def rate(self) -> float:
        """The win rate (W + T/2) / (W + L + T); NaN without a valid judgement."""
        return self.points / self.num_valid if self.num_valid else float("nan")


@dataclass(frozen=True)
class Comparison:
    """A model against a baseline, prompt by prompt.

    Attributes:
        model: Whose wins are counted.
        baseline: Against whom.
        judge: Who judged.
        by_prompt: Counts over all orders and samples of each prompt, by prompt id in sorted order, so that
            nothing computed from them depends on the order of the judgements.
    """

    model: str
    baseline: str
    judge: str
    by_prompt: dict[str, Counts]

    @cached_property
    def counts(self) -> Counts:
        """The counts of all prompts together."""
        return sum(self.by_prompt.values(), Counts())

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """W + T/2 of each prompt with a valid judgement. Shape [N]."""
        return np.array([counts.points for counts in self.by_prompt.values() if counts.num_valid])

    @cached_property
    def sizes(self) -> NDArray[np.float64]:
        """Valid judgements of each prompt that has any. Shape [N]."""
        return np.array([float(c.num_valid) for c in self.by_prompt.values() if c.num_valid])

    @property
    def prompts(self) -> Counts:
        """Prompts won, lost and tied, by each prompt's judgements taken together; invalid: none was valid.

        A judge that prefers whatever stands first gives one win and one loss in two orders: a tied prompt.
        """
        ahead = [counts.wins - counts.losses for counts in self.by_prompt.values() if counts.num_valid]
        wins, losses = sum(lead > 0 for lead in ahead), sum(lead < 0 for lead in ahead)
        return Counts(wins, losses, len(ahead) - wins - losses, len(self.by_prompt) - len(ahead))

    def only(self, ids: Iterable[str]) -> Comparison:
        """Return the comparison on some of the prompts, such as those of one category."""
        kept = set(ids)
        by_prompt = {key: counts for key, counts in self.by_prompt.items() if key in kept}
        return Comparison(self.model, self.baseline, self.judge, by_prompt)


def compare(
    judgements: Sequence[JudgementRecord], model: str, baseline: str, *, judge: str | None = None
) -> Comparison:
    """Gather what was judged between two models.

    Args:
        judgements: Any judgements; those of other models and judges are passed over. Of two of one
            question the first counts: what was written down twice was asked once.
        model: Whose wins are counted.
        baseline: The other model.
        judge: Whose judgements count; ``None`` where there is only one judge.

    Returns:
        The counts by prompt; empty where the two were never compared.

    Raises:
        DataError: If the judgements are of several judges and none is named, or one cannot be read.

    Example:
        >>> both_orders = [JudgementRecord("k1", "p1", 0, "j", "new", "old", "A"),
        ...                JudgementRecord("k2", "p1", 0, "j", "old", "new", "tie")]
        >>> compare(both_orders, "new", "old").counts
        Counts(wins=1, losses=0, ties=1, invalid=0)
    """
    if model == baseline:
        raise DataError(f"a model cannot be compared with itself, got {model!r} twice; name two models")
    about = [record for record in distinct(judgements) if {record.first, record.second} == {model, baseline}]
    judge = only_judge(about) if judge is None else judge
    by_prompt: dict[str, Counts] = {}
    for record in about:
        if record.judge == judge:
            by_prompt[record.id] = by_prompt.get(record.id, Counts()) + _counted(record, model)
    return Comparison(model, baseline, judge or "", dict(sorted(by_prompt.items())))


def only_judge(judgements: Iterable[JudgementRecord]) -> str | None:
    """Return the judge of all these judgements; ``None`` if there are no judgements.

    Raises:
        DataError: If there are several judges.
    """
    judges = sorted({record.judge for record in judgements})
    if len(judges) > 1:
        raise DataError(
            f"the judgements are of {len(judges)} judges ({', '.join(judges)}), whose verdicts cannot be pooled; "
            "pass judge= and look at one at a time"
        )
    return judges[0] if judges else None


def distinct(judgements: Iterable[JudgementRecord]) -> list[JudgementRecord]:
    """Return the judgements, the first of each question, after a check that each can be read.

    Raises:
        DataError: If a verdict is unknown, or a model stands against itself.
    """
    first: dict[tuple[object, ...], JudgementRecord] = {}
    for record in judgements:
        if record.verdict not in VERDICTS:
            raise DataError(
                f"judgement {record.key!r} has the verdict {record.verdict!r}; expected one of {list(VERDICTS)}"
            )
        if record.first == record.second:
            raise DataError(
                f"judgement {record.key!r} compares {record.first!r} with itself; name two models"
            )
        # Not the key alone: equal texts of two samples share a key, and are two questions.
        question = (record.key, record.id, record.sample, record.judge, record.first, record.second)
        first.setdefault(question, record)
    return list(first.values())


def model_pairs(
    judgements: Iterable[JudgementRecord], *, baseline: str | None = None
) -> list[tuple[str, str]]:
    """Return which models were compared, as (model, baseline) in sorted order.

    Args:
        judgements: Any judgements.
        baseline: The model to stand second wherever it takes part; elsewhere the later name stands first.
    """
    pairs = set()
    for record in judgements:
        earlier, later = sorted((record.first, record.second))
        pairs.add((earlier, later) if later == baseline else (later, earlier))
    # The baseline's own pairs come first: they are what most readers look for.
    return sorted(pairs, key=lambda pair: (pair[1] != baseline, pair))


def _counted(record: JudgementRecord, model: str) -> Counts:
    if record.verdict == "invalid":
        return Counts(invalid=1)
    if record.verdict == "tie":
        return Counts(ties=1)
    return Counts(wins=1) if record.winner == model else Counts(losses=1)
