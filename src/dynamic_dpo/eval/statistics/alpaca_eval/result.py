"""AlpacaEval 2's numbers in the form of a report: one flat row a model, and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import Difficulties
from dynamic_dpo.eval.statistics.alpaca_eval.numbers import AlpacaEvalNumbers, alpaca_eval_table


@dataclass(frozen=True)
class AlpacaEvalRow:
    """One model's numbers; shares are in [0, 1], and what is not known is ``None``.

    Attributes:
        model: The model.
        length_controlled: Length-controlled win rate.
        length_controlled_error: Its standard error over prompts.
        win_rate: Weighted win rate.
        win_rate_error: Its standard error.
        discrete_win_rate: Win rate of verdicts, each question counting once.
        num_prompts: Prompts with a valid judgement.
        num_left_out: Questions that length control had to leave out.
        mean_length: Mean length of the model's judged outputs, in characters.
        length_effect: Log-odds that tanh of a standardised difference in length is worth.
    """

    model: str
    length_controlled: float | None
    length_controlled_error: float | None
    win_rate: float
    win_rate_error: float | None
    discrete_win_rate: float
    num_prompts: int
    num_left_out: int
    mean_length: float | None
    length_effect: float | None


@dataclass(frozen=True)
class AlpacaEvalResult:
    """All that one judge said of models against one baseline, as AlpacaEval 2 counts.

    Attributes:
        baseline: The baseline.
        judge: The judge.
        rows: One a model, the best first.
        are_estimated: Whether the difficulties were estimated from these models, and not read from a file.
        has_weights: Whether the judge gave probabilities; without them weighted and discrete are one.
    """

    baseline: str
    judge: str
    rows: list[AlpacaEvalRow]
    are_estimated: bool
    has_weights: bool


def alpaca_eval_result(
    judgements: Sequence[JudgementRecord],
    outputs: Sequence[OutputRecord],
    baseline: str,
    *,
    judge: str,
    difficulties: Difficulties | None = None,
) -> AlpacaEvalResult | None:
    """Compute the numbers as `alpaca_eval_table` does; ``None`` where nothing was judged against the baseline yet."""
    table = alpaca_eval_table(judgements, outputs, baseline, judge=judge, difficulties=difficulties)
    if not table.models:
        return None
    return AlpacaEvalResult(
        baseline=baseline,
        judge=judge,
        rows=[_row(one) for one in table.models],
        are_estimated=difficulties is None,
        has_weights=any(record.judge == judge and record.prob_first is not None for record in judgements),
    )


def _row(one: AlpacaEvalNumbers) -> AlpacaEvalRow:
    controlled = one.controlled
    return AlpacaEvalRow(
        model=one.model,
        length_controlled=None if controlled is None else controlled.rate,
        length_controlled_error=None if controlled is None else _known(controlled.standard_error),
        win_rate=one.weighted.rate,
        win_rate_error=_known(one.weighted.standard_error),
        discrete_win_rate=one.discrete,
        num_prompts=one.weighted.num_prompts,
        num_left_out=one.num_left_out,
        mean_length=_known(one.mean_length),
        length_effect=None if controlled is None else controlled.length_effect,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
