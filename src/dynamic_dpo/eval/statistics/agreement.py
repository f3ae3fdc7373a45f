"""How far two judges agree on the same questions, beyond what chance would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import distinct

# Prompt id, sample, and the two models in their names' order: both orders of a question are one.
OutputPair = tuple[str, int, str, str]


@dataclass(frozen=True)
class Agreement:
    """Two judges on the questions that both answered.

    Attributes:
        judges: Their names.
        num_questions: Questions with a valid verdict of both; a question is two outputs to one prompt.
        num_left_out: Questions of either that lack a valid verdict of the other.
        raw: Share of questions with the same outcome: first model, second model or tie; NaN without a question.
        kappa: Cohen's kappa: 1 is full agreement, 0 what chance gives; NaN where chance alone gives full agreement.
    """

    judges: tuple[str, str]
    num_questions: int
    num_left_out: int
    raw: float
    kappa: float


def judge_agreement(judgements: Sequence[JudgementRecord]) -> list[Agreement]:
    """Compare every two judges.

    A judge's outcome of a question is that of all its orders together, so that judges asked in different orders
    can be compared too.

    Args:
        judgements: Of any judges.

    Returns:
        One entry for every two judges, in their names' order; empty for a single judge.
    """
    outcomes: dict[str, dict[OutputPair, int]] = {}
    for record in distinct(judgements):
        by_question = outcomes.setdefault(record.judge, {})
        if record.verdict == "invalid":
            continue
        one, two = sorted((record.first, record.second))
        question = (record.id, record.sample, one, two)
        lead = {one: 1, two: -1, None: 0}[record.winner]
        by_question[question] = by_question.get(question, 0) + lead
    return [
        _agreement(one, two, outcomes[one], outcomes[two]) for one, two in combinations(sorted(outcomes), 2)
    ]


def _agreement(one: str, two: str, of_one: dict[OutputPair, int], of_two: dict[OutputPair, int]) -> Agreement:
    from sklearn.metrics import cohen_kappa_score

    shared = sorted(of_one.keys() & of_two.keys())
    left_out = len(of_one.keys() ^ of_two.keys())
    # The sign alone: two orders for a model are one outcome, as one order is.
    pairs = [(_sign(of_one[question]), _sign(of_two[question])) for question in shared]
    if not pairs:
        return Agreement((one, two), 0, left_out, math.nan, math.nan)
    raw = sum(a == b for a, b in pairs) / len(pairs)
    # With one outcome throughout, kappa is 0/0: there was nothing to agree about.
    is_constant = len({outcome for pair in pairs for outcome in pair}) == 1
    kappa = math.nan if is_constant else float(cohen_kappa_score(*zip(*pairs, strict=True)))
    return Agreement((one, two), len(pairs), left_out, raw, kappa)


def _sign(lead: int) -> int:
    return (lead > 0) - (lead < 0)
