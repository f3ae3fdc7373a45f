"""The stages of an evaluation before its report: prepare, generate, judge; alone, together, and again.

Each does what is missing in the evaluation's folder and leaves a note there; the next one takes nothing that other
settings made.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dynamic_dpo.eval.folder import EvaluationFolder, JudgeNote, Scores, check_judges
from dynamic_dpo.eval.generate.ready import is_ready
from dynamic_dpo.eval.generate.stage import write_outputs
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judges.turns.chat import TurnsJudge
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.questions import Askable, RecordT
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.sets import load_prompts
from dynamic_dpo.eval.records import PromptRecord

logger = logging.getLogger("dynamic_dpo")


def prepare(folder: EvaluationFolder, *, again: bool = True) -> list[PromptRecord]:
    """Load and draw the prompts, and write them to ``prompts.jsonl``.

    Args:
        folder: The evaluation's folder.
        again: Whether to do so even if the folder holds prompts of the same settings.

    Returns:
        The prompts.

    Raises:
        DataError: If the prompts cannot be had.
    """
    if not again and folder.has_prompts():
        return folder.prompts()
    found = load_prompts(**folder.plan.prompts, report_dir=folder.plan.folder)
    folder.write_prompts(found)
    return found.prompts


def generate_all(folder: EvaluationFolder) -> None:
    """Let every model write what it has not written yet, and score what is to be scored.

    Raises:
        ConfigError: If the prompts were not prepared, or by other settings.
        ModelError: If a model cannot be used.
    """
    plan = folder.plan
    prompts = folder.prompts()
    for spec in plan.models:
        written = write_outputs(prompts, spec, plan.generation, folder.outputs_path, progress=plan.progress)
        folder.note_model(spec, written)
        if plan.scoring is not None and not is_ready(spec) and not folder.has_scores(spec, prompts):
            folder.note_scores(spec, prompts, _scored(folder, spec, prompts))


def judge_all(folder: EvaluationFolder) -> str | None:
    """Get every judge's answer to every question that has none; their answers stand in one file.

    Returns:
        Which limit of the budget ended it, in words; ``None`` where every question is answered.

    Raises:
        ConfigError: If outputs are missing or were made by other settings.
        JudgeError: If the judge cannot be had; what is answered stays answered.
    """
    prompts = folder.prompts()
    questions = folder.questions(prompts, folder.outputs(prompts)).questions
    with ExitStack() as stack:
        judges: dict[str | None, Judge | TurnsJudge] = {}
        for further, judging in ((None, folder.plan.judging), *folder.plan.further_judges.items()):
            judge = judges[further] = judging.make_judge()
            if hasattr(judge, "close"):
                stack.callback(judge.close)
        # Before anything is paid.
        check_judges([JudgeNote(further or one.name, one.fingerprint()) for further, one in judges.items()])
        stopped = [
            ask_all(folder, questions, folder.judgements_path, judge=one, further=further)
            for further, one in judges.items()
        ]
    return next((limit for limit in stopped if limit), None)


def ask_all(
    folder: EvaluationFolder,
    questions: Sequence[Askable[RecordT]],
    path: Path,
    record: type[RecordT] | None = None,
    *,
    judge: Judge | TurnsJudge | None = None,
    further: str | None = None,
) -> str | None:
    """Ask questions of one kind that have no answer; as `judge_all`.

    Args:
        folder: The evaluation's folder.
        questions: The questions.
        path: The file of answers.
        record: What they are; ``None``: judgements.
        judge: Who is asked; ``None``: the plan's first judge, made here and closed again.
        further: Name of one of the plan's further judges; ``None``: the first.
    """
    plan = folder.plan
    judging = plan.judging if further is None else plan.further_judges[further]
    with ExitStack() as stack:
        if judge is None:
            judge = judging.make_judge()
            if hasattr(judge, "close"):
                stack.callback(judge.close)
        ledger = stack.enter_context(JudgeLedger(path, record))
        # Noted first: a report of a run that was killed later finds its answers by it.
        note = JudgeNote(judge.name if further is None else further, judge.fingerprint())
        folder.note_judge(note, further)
        outcome = run_judging(
            questions,
            judge,
            ledger,
            concurrency=judging.concurrency,
            budget=plan.judging.budget,
            progress=plan.progress,
        )
    folder.note_judge(note._replace(stopped=outcome.stopped), further)
    if outcome.stopped:
        logger.warning(
            "judging stopped at the %s; %d of %d questions have no answer",
            outcome.stopped,
            len(outcome.unanswered),
            len(questions),
        )
    return outcome.stopped


def _scored(folder: EvaluationFolder, spec: ModelSpec, prompts: Sequence[PromptRecord]) -> Scores:
    """Score the held-out pairs by a model and, where the KL is measured, its outputs."""
    from dynamic_dpo.eval.scoring.outputs import held_out_margins, output_logps

    plan = folder.plan
    assert plan.scoring is not None
    margins = held_out_margins(spec, plan.scoring, progress=plan.progress)
    if not plan.measures_kl:
        return Scores(margins, [], [])
    fingerprint = folder.written_model(spec).fingerprint
    policy, start = output_logps(
        prompts, folder.outputs_path, fingerprint, spec, plan.scoring, progress=plan.progress
    )
    return Scores(margins, policy, start)
