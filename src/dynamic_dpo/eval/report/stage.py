"""The last stage of an evaluation: what the stages before it made, handed to the report with everything beside it.

Puts into words what a reader must not miss (prompts left out, verdicts that are missing) and into tables what the
numbers were made with. The numbers themselves are computed by the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.data.named_files import local_file
from dynamic_dpo.eval.collected import Evaluated, collect
from dynamic_dpo.eval.folder import EvaluationFolder
from dynamic_dpo.eval.judges.table import JUDGES
from dynamic_dpo.eval.judging.questions import IDENTICAL_REASON
from dynamic_dpo.eval.plan import EvaluationPlan
from dynamic_dpo.eval.prompts.sets import ids_in_order
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.write import ReportPaths, write_evaluation_report
from dynamic_dpo.eval.scoring.metrics import (
    FrontierPoint,
    reward_kl_frontier,
    sequence_kl,
    summarise_margins,
)
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import Difficulties, read_difficulties
from dynamic_dpo.eval.statistics.comparisons import compare
from dynamic_dpo.utils.secrets import redact_values


class Reported(NamedTuple):
    """The files of the report, and which limit of the budget had ended the judging, if any."""

    paths: ReportPaths
    stopped: str | None


def report(folder: EvaluationFolder) -> Reported:
    """Write the report of an evaluation from what there is.

    Equal answers give equal files, whenever and however often the evaluation was interrupted.

    Args:
        folder: The evaluation's folder.

    Returns:
        The files written. The numbers are also in the plan's ``summary_file``.

    Raises:
        ConfigError: If a stage has not run, or ran with other settings.
        DataError: If a file is damaged.
    """
    done = collect(folder)
    paths = write_evaluation_report(folder.plan.folder, report_data(folder.plan, done))
    summary = folder.summary_path
    if summary != paths.json:
        Path(paths.json).replace(summary)
    return Reported(paths._replace(json=summary), done.stopped)


def report_data(plan: EvaluationPlan, done: Evaluated) -> EvaluationData:
    """Return what the report is made from."""
    statistics = plan.statistics
    confidence = statistics.confidence
    return EvaluationData(
        prompts=done.prompts,
        outputs=done.outputs,
        judgements=done.records,
        title=f"Evaluation: {', '.join(model.name for model in plan.models)}",
        created=done.created,
        baseline=plan.baseline_name,
        num_questions=done.num_questions,
        stopped=done.stopped,
        notes=_notes(plan, done),
        provenance=_provenance(plan, done),
        preference={
            name: summarise_margins(scores.margins, beta=plan.scoring.beta, confidence=confidence)
            for name, scores in done.scores.items()
            if scores.margins and plan.scoring is not None
        },
        frontier=_frontier(plan, done),
        confidence=confidence,
        num_resamples=statistics.bootstrap,
        seed=statistics.seed,
        arena=statistics.arena_hard,
        alpaca=statistics.alpaca_eval.enabled,
        difficulties=_difficulties(plan),
        order_blind=[
            name
            for name, fingerprint in {done.judge: done.fingerprint, **done.further}.items()
            if not _sees_order(fingerprint)
        ],
    )


def _difficulties(plan: EvaluationPlan) -> Difficulties | None:
    name = plan.statistics.alpaca_eval.difficulties
    if name is None or not plan.statistics.alpaca_eval.enabled:
        return None
    path = local_file(name)
    # A table names instructions by their place in the set; prompts are drawn in an order of their own.
    return read_difficulties(path, [] if path.suffix == ".json" else ids_in_order(**plan.prompts))


def _frontier(plan: EvaluationPlan, done: Evaluated) -> list[FrontierPoint]:
    """Return every model with its drift from the reference and its win rate against the baseline."""
    baseline, points = plan.baseline_name, []
    for name, scores in done.scores.items():
        if not scores.policy_logps:
            continue
        rate = (
            0.5 if name == baseline else compare(done.records, name, baseline, judge=done.judge).counts.rate
        )
        if not math.isnan(rate):
            points.append(
                FrontierPoint(name, sequence_kl(scores.policy_logps, scores.reference_logps).k1, rate)
            )
    return reward_kl_frontier(points)


def _notes(plan: EvaluationPlan, done: Evaluated) -> list[str]:
    notes = []
    if plan.scoring is not None and not plan.measures_kl:
        notes.append(
            "The KL to the reference is left out: its estimate needs outputs that are sampled at temperature 1 and "
            "from the whole distribution (top_p 1)."
        )
    for name, prompts in sorted(done.left_out.items()):
        notes.append(
            f"{name} could not be asked {len(prompts)} of {len(done.prompts)} prompts; they are in no comparison "
            f"with it. The first reason: {prompts[min(prompts)]}."
        )
    if done.num_unanswered and not done.stopped:
        notes.append(
            f"{done.num_unanswered} of {done.num_questions} questions have no answer: the judging was interrupted. "
            "Running the evaluation again goes on from here."
        )
    identical = sum(record.reason == IDENTICAL_REASON for record in done.records)
    if identical:
        notes.append(
            f"{identical} of {done.num_questions} questions are ties because both outputs are the same text; the "
            "judge was not asked."
        )
    for source in done.prompts_report["sources"]:
        if source["quarantined"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in source["reasons"].items())
            notes.append(f"{source['quarantined']} of {source['rows']} rows gave no prompt: {reasons}.")
    return notes


def _provenance(plan: EvaluationPlan, done: Evaluated) -> dict[str, Mapping[str, Any]]:
    prompts = done.prompts_report
    return {
        **{name: without_secrets(note) for name, note in done.provenance.items()},
        "judge": {
            **without_secrets(done.fingerprint),
            "orders": _orders(plan),
            **_spent(done, done.judge),
        },
        **{
            f"judge {name}": {**without_secrets(fingerprint), **_spent(done, name)}
            for name, fingerprint in done.further.items()
        },
        "prompts": {
            "source": plan.prompts["name"],
            "split": prompts["settings"]["split"],
            "seed": prompts["settings"]["seed"],
            "drawn": prompts["drawn"],
            "distinct": prompts["distinct"],
            "duplicates": prompts["duplicates"],
        },
    }


def _spent(done: Evaluated, judge: str) -> dict[str, Any]:
    records = [record for record in done.records if record.judge == judge]
    cost = sum(record.cost for record in records)
    return {
        "replies": sum(record.attempts for record in records),
        "prompt_tokens": sum(record.prompt_tokens for record in records),
        "completion_tokens": sum(record.completion_tokens for record in records),
        **({"cost": round(cost, 6)} if cost else {}),
    }


def _sees_order(fingerprint: Mapping[str, Any]) -> bool:
    kind = JUDGES.get(str(fingerprint.get("kind")))
    return kind is None or kind.sees_order


def _orders(plan: EvaluationPlan) -> str:
    if plan.judging.both_orders:
        return "both"
    return f"one, drawn with seed {plan.judging.seed}" if plan.judging.randomize_order else "baseline second"


def without_secrets(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a note says, without secrets; values that hold others are written as JSON."""
    return {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
        for key, value in redact_values(note).items()
        if value is not None
    }
