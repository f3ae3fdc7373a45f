"""Judgements as Arena-Hard counts them: both orders of a question together, strong verdicts threefold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import distinct

STRONG_WEIGHT = 3
"""How often a strong verdict counts (`show_result.py` of ``lmarena/arena-hard-auto``, ``weight=3``)."""


class Battle(NamedTuple):
    """One question between two models, both its games together.

    Attributes:
        prompt: The prompt's id.
        sample: The outputs' sample number.
        model: The model whose points are counted.
        other: The other model: the baseline where it takes part, else the earlier name.
        points: Wins of the model, ties half, strong verdicts `STRONG_WEIGHT` times.
        size: What could have been won.
    """

    prompt: str
    sample: int
    model: str
    other: str
    points: float
    size: float


@dataclass(frozen=True)
class Battles:
    """All questions of one judge that count.

    Attributes:
        rows: In sorted order, so that nothing depends on the order of the judgements.
        labels: Model and label, from the model's side (``>>`` to ``<<``), to how many games had it.
        left_out: Model to how many of its questions do not count: a game was not played, or has no verdict.
    """

    rows: tuple[Battle, ...]
    labels: Counter[tuple[str, str]]
    left_out: Counter[str]

    def only(self, prompts: Iterable[str]) -> tuple[Battle, ...]:
        """Return the questions on some of the prompts, such as those of one category."""
        kept = set(prompts)
        return tuple(row for row in self.rows if row.prompt in kept)


def battles(
    judgements: Sequence[JudgementRecord], baseline: str, *, strong_weight: int = STRONG_WEIGHT
) -> Battles:
    """Gather one judge's verdicts into questions; a question with a game missing or invalid does not count.

    Args:
        judgements: Of one judge.
        baseline: The model to stand second wherever it takes part.
        strong_weight: How often a strong verdict counts.

    Example:
        >>> games = [JudgementRecord("1", "p", 0, "j", "new", "old", "A", strong=True),
        ...          JudgementRecord("2", "p", 0, "j", "old", "new", "tie")]
        >>> battles(games, "old").rows
        (Battle(prompt='p', sample=0, model='new', other='old', points=3.5, size=4.0),)
    """
    games: dict[tuple[str, int, str, str], dict[str, JudgementRecord]] = {}
    for record in distinct(judgements):
        other, model = sorted((record.first, record.second), key=lambda name: (name != baseline, name))
        games.setdefault((record.id, record.sample, model, other), {})[record.first] = record
    rows, labels, left_out = [], Counter[tuple[str, str]](), Counter[str]()
    for (prompt, sample, model, other), by_first in sorted(games.items()):
        if len(by_first) < 2 or any(record.verdict == "invalid" for record in by_first.values()):
            left_out.update((model, other))
            continue
        points = size = 0.0
        for record in by_first.values():
            weight = strong_weight if record.strong else 1
            size += weight
            points += weight * _share(record, model)
            for name in (model, other):
                labels[name, _label(record, name)] += 1
        rows.append(Battle(prompt, sample, model, other, points, size))
    return Battles(tuple(rows), labels, left_out)


def has_whole_question(judgements: Sequence[JudgementRecord], baseline: str) -> bool:
    """Return whether any question with the baseline has a verdict in both orders: without one there is no score."""
    return any(row.other == baseline for row in battles(judgements, baseline).rows)


def _share(record: JudgementRecord, model: str) -> float:
    return 0.5 if record.winner is None else float(record.winner == model)


def _label(record: JudgementRecord, model: str) -> str:
    if record.winner is None:
        return "="
    sign = ">" if record.winner == model else "<"
    return sign * 2 if record.strong else sign
