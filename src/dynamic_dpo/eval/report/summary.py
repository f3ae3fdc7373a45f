"""Every number of an evaluation report, computed once from the records, before anything is written.

What can be said is computed, what cannot is left out: two models get no Bradley-Terry strengths, one judge no
agreement.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.scoring.metrics import FrontierPoint, reward_kl_frontier
from dynamic_dpo.eval.statistics.agreement import Agreement, judge_agreement
from dynamic_dpo.eval.statistics.alpaca_eval.result import AlpacaEvalResult, alpaca_eval_result
from dynamic_dpo.eval.statistics.arena.battles import has_whole_question
from dynamic_dpo.eval.statistics.arena.score import ArenaResult, arena_result
from dynamic_dpo.eval.statistics.bradley_terry import BradleyTerry, bradley_terry
from dynamic_dpo.eval.statistics.comparisons import Comparison, compare, distinct, model_pairs
from dynamic_dpo.eval.statistics.length_control import LengthControlledWinRate, length_controlled_win_rate
from dynamic_dpo.eval.statistics.paired_tests import PairedTest, holm, mcnemar_test
from dynamic_dpo.eval.statistics.position_bias import PositionBias, position_bias
from dynamic_dpo.eval.statistics.win_rate import WinRate, win_rate, win_rate_by_category

# Shares from which a reader must be told before the win rates are: they compare something else then.
LOUD_INVALID_SHARE, LOUD_FAULT_SHARE = 0.05, 0.05


@dataclass(frozen=True)
class PairSummary:
    """One model against another, by one judge.

    Attributes:
        overall: The win rate over all prompts.
        by_category: The same by category; empty unless there are at least two.
        controlled: The win rate at equal lengths; ``None`` where the texts are not there.
        p_holm: The win rate's p-value after Holm's correction for all pairs of this judge.
    """

    overall: WinRate
    by_category: dict[str, WinRate]
    controlled: LengthControlledWinRate | None
    p_holm: float


@dataclass(frozen=True)
class CorrectedTest:
    """A test between two methods with a common baseline, and its p-value after Holm's correction."""

    judge: str
    test: PairedTest
    p_holm: float


@dataclass(frozen=True)
class ModelSummary:
    """What one model wrote.

    Attributes:
        name: The model.
        num_outputs: Outputs.
        lengths: Shortest, lower quartile, median, upper quartile and longest output, in characters.
        mean_length: Mean length in characters.
        mean_tokens: Mean length in the model's own tokens; ``None`` where any is unknown.
        num_unfinished: Outputs cut at the limit.
        faults: Fault that the lint found to the number of outputs with it.
        num_faulty: Outputs with any fault.
    """

    name: str
    num_outputs: int
    lengths: tuple[float, float, float, float, float]
    mean_length: float
    mean_tokens: float | None
    num_unfinished: int
    faults: dict[str, int]
    num_faulty: int


@dataclass(frozen=True)
class JudgeSummary:
    """What one judge did and cost.

    Attributes:
        name: The judge.
        num_judgements: Answered questions.
        num_invalid: Of those, without a usable verdict.
        num_attempts: Replies asked for.
        prompt_tokens: Tokens read; 0 where the judge counts none.
        completion_tokens: Tokens written.
        cost: Money by the price table; 0 without one.
        bias: Its dependence on the order; ``None`` for a judge that sees none.
        strengths: Bradley-Terry strengths; ``None`` for fewer than three models.
    """

    name: str
    num_judgements: int
    num_invalid: int
    num_attempts: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    bias: PositionBias | None
    strengths: BradleyTerry | None


@dataclass(frozen=True)
class EvaluationSummary:
    """All numbers of a report.

    Attributes:
        alarms: What a reader must know before any number.
        pairs: Win rates, judge by judge.
        methods: Tests between methods with a common baseline.
        models: What the models wrote.
        judges: What the judges did.
        agreement: Of every two judges.
        frontier: Checkpoints in the order of KL, the efficient ones marked.
        arena: Arena-Hard's tables, judge by judge; empty where they are not asked for.
        alpaca: AlpacaEval 2's numbers, judge by judge; empty where they are not asked for.
    """

    alarms: list[str]
    pairs: list[PairSummary]
    methods: list[CorrectedTest]
    models: list[ModelSummary]
    judges: list[JudgeSummary]
    agreement: list[Agreement]
    frontier: list[FrontierPoint] = field(default_factory=list)
    arena: list[ArenaResult] = field(default_factory=list)
    alpaca: list[AlpacaEvalResult] = field(default_factory=list)


def summarise(data: EvaluationData) -> EvaluationSummary:
    """Compute a report's numbers.

    Args:
        data: The records.

    Raises:
        ConfigError: If the confidence or the number of resamples is impossible.
        DataError: If a judgement cannot be read, or the baseline is no model of these records.
    """
    judgements = distinct(data.judgements)
    names = {name for record in judgements for name in (record.first, record.second)}
    # A baseline that is merely not judged yet, as after an early stop, is no mistake.
    names |= {output.model for output in data.outputs}
    if names and data.baseline is not None and data.baseline not in names:
        raise DataError(
            f"the baseline {data.baseline!r} has neither outputs nor judgements; models: {', '.join(sorted(names))}"
        )
    judge_names = sorted({record.judge for record in judgements})
    models, judges = _models(data.outputs), [_judge(name, judgements, data) for name in judge_names]
    pairs: list[PairSummary] = []
    methods: list[CorrectedTest] = []
    for name in judge_names:
        of_judge = [record for record in judgements if record.judge == name]
        comparisons = [compare(of_judge, *pair) for pair in model_pairs(of_judge, baseline=data.baseline)]
        pairs += _pairs(comparisons, of_judge, data)
        methods += _methods(comparisons, data.baseline)
    return EvaluationSummary(
        alarms=_alarms(data, len(judgements), models, judges),
        pairs=pairs,
        methods=methods,
        models=models,
        judges=judges,
        agreement=judge_agreement(judgements, confidence=data.confidence),
        frontier=reward_kl_frontier(data.frontier),
        arena=[found for name in judge_names if (found := _arena(name, judgements, data)) is not None],
        alpaca=[table for name in judge_names if (table := _alpaca(name, judgements, data)) is not None],
    )


def _alpaca(
    judge: str, judgements: Sequence[JudgementRecord], data: EvaluationData
) -> AlpacaEvalResult | None:
    """Return AlpacaEval 2's numbers by one judge; ``None`` where they are not asked for, or nothing is judged yet."""
    if not data.alpaca or data.baseline is None:
        return None
    return alpaca_eval_result(
        judgements, data.outputs, data.baseline, judge=judge, difficulties=data.difficulties
    )


def _arena(judge: str, judgements: Sequence[JudgementRecord], data: EvaluationData) -> ArenaResult | None:
    """Return Arena-Hard's tables by one judge; ``None`` where they are not asked for, or no question counts yet."""
    if not data.arena.enabled or data.baseline is None:
        return None
    of_judge = [record for record in judgements if record.judge == judge]
    if not has_whole_question(of_judge, data.baseline):
        return None
    return arena_result(
        of_judge,
        data.baseline,
        outputs=data.outputs,
        categories={prompt.id: prompt.category for prompt in data.prompts},
        strong_weight=data.arena.strong_weight,
        markdown=data.arena.markdown,
        centred=data.arena.centred,
        confidence=data.confidence,
        num_resamples=data.num_resamples,
        seed=data.seed,
    )


def _pairs(
    comparisons: Sequence[Comparison], judgements: Sequence[JudgementRecord], data: EvaluationData
) -> list[PairSummary]:
    overall = [win_rate(comparison, confidence=data.confidence) for comparison in comparisons]
    corrected = holm({str(number): result.p_value for number, result in enumerate(overall)})
    categories = {prompt.id: prompt.category for prompt in data.prompts}
    summaries = []
    for comparison, result, p_holm in zip(comparisons, overall, corrected.values(), strict=True):
        by_category = win_rate_by_category(comparison, categories, confidence=data.confidence)
        summaries.append(
            PairSummary(
                overall=result,
                by_category=by_category if len(by_category) > 1 else {},
                controlled=_controlled(comparison, judgements, data),
                p_holm=p_holm,
            )
        )
    return summaries


def _controlled(
    comparison: Comparison, judgements: Sequence[JudgementRecord], data: EvaluationData
) -> LengthControlledWinRate | None:
    written = {(output.id, output.sample, output.model) for output in data.outputs}
    has_texts = any(
        {(record.id, record.sample, record.first), (record.id, record.sample, record.second)} <= written
        for record in judgements
        if {record.first, record.second} == {comparison.model, comparison.baseline}
        and record.verdict != "invalid"
    )
    if not has_texts:
        return None
    return length_controlled_win_rate(
        judgements,
        data.outputs,
        comparison.model,
        comparison.baseline,
        confidence=data.confidence,
        num_resamples=data.num_resamples,
        seed=data.seed,
    )


def _methods(comparisons: Sequence[Comparison], baseline: str | None) -> list[CorrectedTest]:
    to_baseline = [comparison for comparison in comparisons if comparison.baseline == baseline]
    tests = [
        mcnemar_test(first, second)
        for number, first in enumerate(to_baseline)
        for second in to_baseline[number + 1 :]
    ]
    corrected = holm({test.name: test.p_value for test in tests})
    return [CorrectedTest(to_baseline[0].judge, test, corrected[test.name]) for test in tests]


def _models(outputs: Sequence[OutputRecord]) -> list[ModelSummary]:
    """Return what each model wrote, in their names' order."""
    by_model: dict[str, list[OutputRecord]] = {}
    for output in outputs:
        by_model.setdefault(output.model, []).append(output)
    summaries = []
    for name, written in sorted(by_model.items()):
        lengths = sorted(len(output.text) for output in written)
        tokens = [output.num_tokens for output in written]
        # An empty output has 0 tokens by right; any other 0 says that nobody counted.
        is_counted = all(output.num_tokens or not output.text for output in written)
        summaries.append(
            ModelSummary(
                name=name,
                num_outputs=len(written),
                lengths=(lengths[0], *_quartiles(lengths), lengths[-1]),
                mean_length=statistics.fmean(lengths),
                mean_tokens=statistics.fmean(tokens) if is_counted else None,
                num_unfinished=sum(not output.finished for output in written),
                faults=dict(
                    sorted(Counter(flag for output in written for flag in set(output.flags)).items())
                ),
                num_faulty=sum(bool(output.flags) for output in written),
            )
        )
    return summaries


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _judge(name: str, judgements: Sequence[JudgementRecord], data: EvaluationData) -> JudgeSummary:
    own = [record for record in judgements if record.judge == name]
    judged = {model for r in own if r.verdict != "invalid" for model in (r.first, r.second)}
    return JudgeSummary(
        name=name,
        num_judgements=len(own),
        num_invalid=sum(record.verdict == "invalid" for record in own),
        num_attempts=sum(record.attempts for record in own),
        prompt_tokens=sum(record.prompt_tokens for record in own),
        completion_tokens=sum(record.completion_tokens for record in own),
        # Sorted, for a sum of floats must not depend on the order of the file.
        cost=sum(sorted(record.cost for record in own)),
        bias=(None if name in data.order_blind else position_bias(own, name, confidence=data.confidence)),
        strengths=(
            bradley_terry(own, confidence=data.confidence, num_resamples=data.num_resamples, seed=data.seed)
            if len(judged) >= 3
            else None
        ),
    )


def _alarms(
    data: EvaluationData, num_judgements: int, models: Sequence[ModelSummary], judges: Sequence[JudgeSummary]
) -> list[str]:
    alarms = []
    if data.stopped:
        alarms.append(
            f"The judging stopped early: {data.stopped}. Every figure rests on what was judged until then."
        )
    missing = (data.num_questions or 0) - num_judgements
    if missing > 0:
        alarms.append(
            f"{missing:,} of {data.num_questions:,} questions have no answer: the prompts judged are not the sample "
            "that was drawn."
        )
    for judge in judges:
        share = judge.num_invalid / judge.num_judgements
        if share >= LOUD_INVALID_SHARE:
            alarms.append(
                f"{judge.name} gave no usable verdict on {judge.num_invalid:,} of {judge.num_judgements:,} questions "
                f"({100 * share:.0f} %): the win rates leave these out."
            )
    for model in models:
        share = model.num_faulty / model.num_outputs
        if share >= LOUD_FAULT_SHARE:
            found = ", ".join(fault.replace("_", " ") for fault in model.faults)
            alarms.append(
                f"{model.num_faulty:,} of {model.num_outputs:,} outputs of {model.name} have faults of generation "
                f"({100 * share:.0f} %: {found}): a judge may have compared those rather than answers."
            )
    return [*alarms, *data.notes]
