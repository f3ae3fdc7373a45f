"""Labels by a judge that compares: a prompt's answers meet each other, each two in both orders.

An answer wins a comparison where both orders prefer it; what the orders disagree on is a tie. Its score is its mean
result, a win counting 1 and a tie 1/2 (Copeland's score): no verdict is asked for that does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from dynamic_dpo.eval.judging.questions import Question
from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.rollouts.answers import REFERENCE, Answer
from dynamic_dpo.rollouts.filters import Dropped
from dynamic_dpo.rollouts.plan import Comparing
from dynamic_dpo.utils.hashing import content_hash

SCORE = "wins"
"""Name of the score."""


class Labelled(NamedTuple):
    """A prompt's answers after labelling.

    Attributes:
        answers: Those that have a score.
        dropped: Comparisons without a valid verdict, and answers that have no other.
    """

    answers: list[Answer]
    dropped: list[Dropped]


def meetings(
    prompt_id: str, answers: Sequence[Answer], comparing: Comparing, *, with_reference: bool = False
) -> list[tuple[Answer, Answer]]:
    """Return which answers of a prompt are compared.

    Args:
        prompt_id: The prompt's id.
        answers: Its answers.
        comparing: How many comparisons there may be, and the seed.
        with_reference: Compare each sample with the data set's own answer, and with nothing else.

    Returns:
        Every two, or as many as there may be: the answers stand in a ring, in an order drawn by seed and prompt, and
        each meets its neighbours first, then the next but one, and so on, so that all meet nearly equally many.

    Example:
        >>> answers = [Answer("policy", n, str(n)) for n in range(4)]
        >>> from unittest.mock import Mock
        >>> ring = meetings("p", answers, Comparing(Mock(), max_comparisons=4))
        >>> [sum(answer in meeting for meeting in ring) for answer in answers]
        [2, 2, 2, 2]
    """
    if with_reference:
        references = [answer for answer in answers if answer.model == REFERENCE]
        found = [(one, other) for one in answers if one.model != REFERENCE for other in references]
        return found[: comparing.max_comparisons]
    if (
        comparing.max_comparisons is None
        or len(answers) * (len(answers) - 1) // 2 <= comparing.max_comparisons
    ):
        return list(combinations(answers, 2))
    ring = sorted(answers, key=lambda answer: content_hash([comparing.seed, prompt_id, answer.name]))
    size = len(ring)
    places = [
        (place, (place + apart) % size)
        for apart in range(1, size // 2 + 1)
        for place in range(size // 2 if 2 * apart == size else size)
    ]
    return [(ring[one], ring[other]) for one, other in places[: comparing.max_comparisons]]


def questions_about(prompt: PromptRecord, met: Iterable[tuple[Answer, Answer]]) -> list[Question]:
    """Return what the judge is asked: each comparison in both orders."""
    questions = []
    for one, other in met:
        for first, second in ((one, other), (other, one)):
            questions.append(Question(prompt, 0, first.name, second.name, first.text, second.text))
    return questions


def compared(
    prompt_id: str,
    answers: Sequence[Answer],
    met: Sequence[tuple[Answer, Answer]],
    records: Mapping[tuple[str, str], JudgementRecord],
    *,
    with_reference: bool = False,
) -> Labelled:
    """Return answers with the scores that comparisons give them.

    Args:
        prompt_id: The prompt's id.
        answers: Its answers.
        met: Which were compared.
        records: The judge's answers, by the names of the answers in the order shown.
        with_reference: Whether the data set's own answer is the measure; its score is then 1/2, a tie.

    Returns:
        Labelled answers. A comparison whose verdict is invalid in an order counts for neither of the two.
    """
    results: dict[str, list[float]] = {answer.name: [] for answer in answers}
    dropped = []
    for one, other in met:
        verdicts = [records.get((one.name, other.name)), records.get((other.name, one.name))]
        valid = [record for record in verdicts if record is not None and record.verdict != "invalid"]
        if len(valid) < len(verdicts):
            reason = "not_judged" if None in verdicts else "invalid_judgement"
            dropped.append(Dropped(prompt_id, reason, (one.name, other.name)))
            continue
        winners = {record.winner for record in valid}
        winner = winners.pop() if len(winners) == 1 else None
        for answer in (one, other):
            results[answer.name].append(0.5 if winner is None else float(winner == answer.name))
    labelled = []
    for answer in answers:
        found = results[answer.name]
        if not found:
            dropped.append(Dropped(prompt_id, "no_label", (answer.name,)))
            continue
        is_measure = with_reference and answer.model == REFERENCE
        score = 0.5 if is_measure else sum(found) / len(found)
        labelled.append(replace(answer, score=score, scores={SCORE: score}))
    return Labelled(labelled, dropped)
