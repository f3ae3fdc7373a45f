"""The stages of an evaluation before its report: prepare, generate, judge; alone, together, and again.

Each does what is missing and leaves a note in the manifest; the next one takes nothing that other settings made. How
prompts are read, outputs written and questions judged is known in the stages' own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from dynamic_dpo.eval.collected import PROMPTS_FILE, Scores, outputs_of, prompts_of, questions_of, scored_with
from dynamic_dpo.eval.generate.ready import is_ready
from dynamic_dpo.eval.generate.stage import write_outputs
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.manifest import Manifest
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.plan import EvaluationPlan
from dynamic_dpo.eval.prompts.sets import load_prompts, read_prompts, write_prompts
from dynamic_dpo.eval.records import PromptRecord

logger = logging.getLogger("dynamic_dpo")


def prepare(plan: EvaluationPlan, *, again: bool = True) -> list[PromptRecord]:
    """Load and draw the prompts, and write them to ``prompts.jsonl``.

    Args:
        plan: The evaluation.
        again: Whether to do so even if the folder holds prompts of the same settings.

    Returns:
        The prompts.

    Raises:
        DataError: If the prompts cannot be had.
    """
    manifest = Manifest(plan.folder)
    path = plan.folder / PROMPTS_FILE
    if not again and path.is_file() and manifest.get("prompts", plan.prompts) is not None:
        return read_prompts(path)
    found = load_prompts(**plan.prompts, report_dir=plan.folder)
    write_prompts(path, found.prompts)
    # After the file: a crash between the two prepares again instead of trusting another draw.
    manifest.put("prompts", plan.prompts, found.report)
    return found.prompts


def generate_all(plan: EvaluationPlan) -> None:
    """Let every model write what it has not written yet.

    Raises:
        ConfigError: If the prompts were not prepared, or by other settings.
        ModelError: If a model cannot be used.
    """
    prompts = prompts_of(plan, Manifest(plan.folder))
    for spec in plan.models:
        written = write_outputs(
            prompts, spec, plan.generation, plan.folder / plan.generations_file, progress=plan.progress
        )
        manifest = Manifest(plan.folder)
        manifest.put(f"model {spec.name}", plan.asked_of(spec), written._asdict())
        if plan.scoring is not None and not is_ready(spec):
            _score(plan, spec, prompts, written.fingerprint, manifest)


def judge_all(plan: EvaluationPlan) -> str | None:
    """Get an answer to every question that has none.

    Returns:
        Which limit of the budget ended it, in words; ``None`` where every question is answered.

    Raises:
        ConfigError: If outputs are missing or were made by other settings.
        JudgeError: If the judge cannot be had; what is answered stays answered.
    """
    manifest = Manifest(plan.folder)
    prompts = prompts_of(plan, manifest)
    questions, _ = questions_of(plan, prompts, outputs_of(plan, prompts, manifest))
    judge = plan.judging.make_judge()
    with ExitStack() as stack:
        if hasattr(judge, "close"):
            stack.callback(judge.close)
        ledger = stack.enter_context(JudgeLedger(plan.folder / plan.judgements_file))
        # Noted first: a report of a run that was killed later finds its answers by it.
        note = {"name": judge.name, "fingerprint": judge.fingerprint(), "stopped": None}
        manifest.put("judge", plan.judging.identity, note)
        outcome = run_judging(
            questions,
            judge,
            ledger,
            concurrency=plan.judging.concurrency,
            budget=plan.judging.budget,
            progress=plan.progress,
        )
    manifest.put("judge", plan.judging.identity, {**note, "stopped": outcome.stopped})
    if outcome.stopped:
        logger.warning(
            "judging stopped at the %s; %d of %d questions have no answer",
            outcome.stopped,
            len(outcome.unanswered),
            len(questions),
        )
    return outcome.stopped


def _score(
    plan: EvaluationPlan,
    spec: ModelSpec,
    prompts: Sequence[PromptRecord],
    fingerprint: str,
    manifest: Manifest,
) -> None:
    """Score a model's outputs and the held-out pairs, unless that was done."""
    from dynamic_dpo.eval.scoring.outputs import held_out_margins, output_logps

    assert plan.scoring is not None
    settings = scored_with(plan, fingerprint, prompts)
    name = f"scores {spec.name}"
    if manifest.get(name, settings) is None:
        margins = held_out_margins(spec, plan.scoring, progress=plan.progress)
        policy: list[float] = []
        start: list[float] = []
        if plan.measures_kl:
            path = plan.folder / plan.generations_file
            policy, start = output_logps(
                prompts, path, fingerprint, spec, plan.scoring, progress=plan.progress
            )
        scores = Scores(margins, policy, start)
        manifest.put(name, settings, scores._asdict())
