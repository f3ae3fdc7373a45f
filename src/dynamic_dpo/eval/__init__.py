"""Evaluation: prompts, outputs, judges, statistics and reports; each part loads when it is first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamic_dpo.eval.generate.batched import Generation as Generation
    from dynamic_dpo.eval.generate.batched import generate as generate
    from dynamic_dpo.eval.judges.base import PointwiseJudge as PointwiseJudge
    from dynamic_dpo.eval.judges.chat_judge import OracleJudge as OracleJudge
    from dynamic_dpo.eval.judges.function import FunctionScorer as FunctionScorer
    from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle as GPT4Oracle
    from dynamic_dpo.eval.judges.gpt4_oracle import Judgement as Judgement
    from dynamic_dpo.eval.judges.reward_model import RewardModelScorer as RewardModelScorer
    from dynamic_dpo.eval.judges.verdict import Verdict as Verdict
    from dynamic_dpo.eval.judges.verdict import parse_verdict as parse_verdict
    from dynamic_dpo.eval.judging.ledger import JudgeLedger as JudgeLedger
    from dynamic_dpo.eval.judging.questions import make_questions as make_questions
    from dynamic_dpo.eval.judging.stage import run_judging as run_judging
    from dynamic_dpo.eval.lint import lint_output as lint_output
    from dynamic_dpo.eval.prompts.sets import load_prompts as load_prompts
    from dynamic_dpo.eval.records import JudgementRecord as JudgementRecord
    from dynamic_dpo.eval.records import OutputRecord as OutputRecord
    from dynamic_dpo.eval.records import PromptRecord as PromptRecord
    from dynamic_dpo.eval.report.data import EvaluationData as EvaluationData
    from dynamic_dpo.eval.report.write import write_evaluation_report as write_evaluation_report
    from dynamic_dpo.eval.scoring.metrics import reward_kl_frontier as reward_kl_frontier
    from dynamic_dpo.eval.scoring.metrics import sequence_kl as sequence_kl
    from dynamic_dpo.eval.scoring.metrics import summarise_margins as summarise_margins
    from dynamic_dpo.eval.scoring.pairs import score_pairs as score_pairs
    from dynamic_dpo.eval.statistics.comparisons import compare as compare
    from dynamic_dpo.runs.page import Sample as Sample
    from dynamic_dpo.runs.page import write_run_report as write_run_report

_HOME = {
    "EvaluationData": "eval.report.data",
    "FunctionScorer": "eval.judges.function",
    "GPT4Oracle": "eval.judges.gpt4_oracle",
    "Generation": "eval.generate.batched",
    "JudgeLedger": "eval.judging.ledger",
    "Judgement": "eval.judges.gpt4_oracle",
    "JudgementRecord": "eval.records",
    "OracleJudge": "eval.judges.chat_judge",
    "OutputRecord": "eval.records",
    "PointwiseJudge": "eval.judges.base",
    "PromptRecord": "eval.records",
    "RewardModelScorer": "eval.judges.reward_model",
    "Sample": "runs.page",
    "Verdict": "eval.judges.verdict",
    "compare": "eval.statistics.comparisons",
    "lint_output": "eval.lint",
    "load_prompts": "eval.prompts.sets",
    "make_questions": "eval.judging.questions",
    "parse_verdict": "eval.judges.verdict",
    "reward_kl_frontier": "eval.scoring.metrics",
    "run_judging": "eval.judging.stage",
    "score_pairs": "eval.scoring.pairs",
    "sequence_kl": "eval.scoring.metrics",
    "summarise_margins": "eval.scoring.metrics",
    "write_evaluation_report": "eval.report.write",
    "write_run_report": "runs.page",
}

__all__ = [
    "EvaluationData",
    "FunctionScorer",
    "GPT4Oracle",
    "Generation",
    "JudgeLedger",
    "Judgement",
    "JudgementRecord",
    "OracleJudge",
    "OutputRecord",
    "PointwiseJudge",
    "PromptRecord",
    "RewardModelScorer",
    "Sample",
    "Verdict",
    "compare",
    "generate",
    "lint_output",
    "load_prompts",
    "make_questions",
    "parse_verdict",
    "reward_kl_frontier",
    "run_judging",
    "score_pairs",
    "sequence_kl",
    "summarise_margins",
    "write_evaluation_report",
    "write_run_report",
]


def __getattr__(name: str) -> Any:
    if name == "generate":
        # The package is the function as well; importing it binds it here, for good.
        return import_module("dynamic_dpo.eval.generate")
    if name in _HOME:
        return getattr(import_module(f"dynamic_dpo.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
