"""How far two judges agree on the same questions, beyond what chance would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.comparisons import distinct
from dynamic_dpo.eval.statistics.resampling import Array, Interval, check_confidence

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
        kappa_interval: Where kappa over all prompts lies; (-1, 1) where it is NaN or rests on one prompt.
    """

    judges: tuple[str, str]
    num_questions: int
    num_left_out: int
    raw: float
    kappa: float
    kappa_interval: Interval


def judge_agreement(judgements: Sequence[JudgementRecord], *, confidence: float = 0.95) -> list[Agreement]:
    """Compare every two judges.

    A judge's outcome of a question is that of all its orders together, so that judges asked in different orders
    can be compared too.

    Args:
        judgements: Of any judges.
        confidence: Of the intervals.

    Returns:
        One entry for every two judges, in their names' order; empty for a single judge.

    Raises:
        ConfigError: If the confidence gives no interval.
    """
    check_confidence(confidence)
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
        _agreement(one, two, outcomes[one], outcomes[two], confidence)
        for one, two in combinations(sorted(outcomes), 2)
    ]


def _agreement(
    one: str,
    two: str,
    of_one: dict[OutputPair, int],
    of_two: dict[OutputPair, int],
    confidence: float,
) -> Agreement:
    shared = sorted(of_one.keys() & of_two.keys())
    left_out = len(of_one.keys() ^ of_two.keys())
    # Outcomes of one judge by those of the other, prompt by prompt. The sign alone: two orders for a model are one
    # outcome, as one order is.
    by_prompt: dict[str, Array] = {}
    for question in shared:
        table = by_prompt.setdefault(question[0], np.zeros((3, 3)))
        table[1 + _sign(of_one[question]), 1 + _sign(of_two[question])] += 1
    if not shared:
        return Agreement((one, two), 0, left_out, math.nan, math.nan, Interval(-1.0, 1.0))
    tables = np.array(list(by_prompt.values()))
    total = tables.sum(0)
    raw, kappa = float(np.trace(total) / total.sum()), float(_kappa(total))
    interval = Interval(-1.0, 1.0) if math.isnan(kappa) else _kappa_interval(tables, confidence)
    return Agreement((one, two), len(shared), left_out, raw, kappa, interval)


def _kappa(tables: Array) -> Array:
    """Return Cohen's kappa of tables of outcomes, [..., 3, 3] -> [...]; NaN where there is one outcome throughout."""
    shares = tables / tables.sum((-1, -2), keepdims=True)
    agreed = np.trace(shares, axis1=-2, axis2=-1)
    by_chance = (shares.sum(-1) * shares.sum(-2)).sum(-1)
    # With one outcome throughout, kappa is 0/0: there was nothing to agree about.
    left = 1.0 - by_chance
    kappa: Array = np.divide(agreed - by_chance, left, out=np.full_like(left, np.nan), where=left > 1e-12)
    return kappa


def _kappa_interval(tables: Array, confidence: float) -> Interval:
    """Return the jackknife's interval over prompts, [N, 3, 3], with Student's quantile.

    One prompt is added whose questions have every outcome equally often; without it, full agreement on 32 prompts
    would have an interval of no width.
    """
    from scipy.stats import t

    num_prompts = len(tables)
    if num_prompts < 2:
        return Interval(-1.0, 1.0)
    added = np.full((1, 3, 3), tables.sum() / num_prompts / 9)
    with_added = np.concatenate([tables, added])
    total, num = with_added.sum(0), num_prompts + 1
    whole, without_each = _kappa(total), _kappa(total - with_added)
    # Where only the added prompt keeps kappa from 0/0, leaving it out says nothing more than full agreement.
    without_each = np.where(np.isnan(without_each), 1.0, without_each)
    pseudo = num * whole - (num - 1) * without_each
    reach = float(t.ppf((1 + confidence) / 2, num - 1) * pseudo.std(ddof=1) / math.sqrt(num))
    return Interval(max(-1.0, float(whole) - reach), min(1.0, float(whole) + reach))


def _sign(lead: int) -> int:
    return (lead > 0) - (lead < 0)
