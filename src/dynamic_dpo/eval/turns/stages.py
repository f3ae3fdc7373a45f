"""The stages of an evaluation on prompts of several turns: generate, judge, report; the first is that of any other.

Each does what is missing in the evaluation's folder and leaves a note there, as in ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import answers_to_prompt, import_answers
from dynamic_dpo.eval.folder import EvaluationFolder
from dynamic_dpo.eval.generate.turns import Conversations, read_conversations, write_conversations
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.judging.questions import Answered, answers_to
from dynamic_dpo.eval.judging.turns import (
    GradeQuestion,
    TurnPairQuestion,
    grade_questions,
    turn_pair_questions,
)
from dynamic_dpo.eval.pipeline import ask_all
from dynamic_dpo.eval.prompts.turns import REFERENCES
from dynamic_dpo.eval.records import GradeRecord, JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.stage import Reported, without_secrets
from dynamic_dpo.eval.report.summary import LOUD_FAULT_SHARE, LOUD_INVALID_SHARE
from dynamic_dpo.eval.report.write import ReportPaths, write_evaluation_report
from dynamic_dpo.eval.statistics.grades import model_grades
from dynamic_dpo.eval.turns.data import GradesData
from dynamic_dpo.eval.turns.page import write_grades_report

GRADES_FILE = "grades.jsonl"
Said = Mapping[str, Conversations]


def generate_turns(folder: EvaluationFolder) -> None:
    """Let every model answer every turn that it has not answered yet.

    Raises:
        ConfigError: If the prompts were not prepared, or by other settings.
        ModelError: If a model cannot be used.
    """
    plan = folder.plan
    prompts = folder.prompts()
    for spec in plan.models:
        written = write_conversations(
            prompts, spec, plan.generation, plan.turns, folder.outputs_path, progress=plan.progress
        )
        folder.note_model(spec, written)


def judge_turns(folder: EvaluationFolder) -> str | None:
    """Get an answer to every question that has none; as `pipeline.judge_all`."""
    prompts = _prompts(folder)
    said = _said(folder, prompts)
    if folder.plan.grades:
        return ask_all(folder, _grade_questions(prompts, said), folder.plan.folder / GRADES_FILE, GradeRecord)
    return ask_all(folder, _pair_questions(folder, prompts, said), folder.judgements_path)


def report_turns(folder: EvaluationFolder) -> Reported:
    """Write the report from what there is; as `report.stage.report`.

    Raises:
        ConfigError: If a stage has not run, or ran with other settings.
        DataError: If a file is damaged.
    """
    prompts = _prompts(folder)
    said = _said(folder, prompts)
    judge = folder.judge_note()
    make = _report_grades if folder.plan.grades else _report_pairs
    paths = make(folder, prompts, said)
    summary = folder.summary_path
    if summary != paths.json:
        Path(paths.json).replace(summary)
    return Reported(paths._replace(json=summary), judge.stopped)


def _prompts(folder: EvaluationFolder) -> list[PromptRecord]:
    """Return the prompts with the right answers that a file of the user's has for them."""
    prompts = folder.prompts()
    path = folder.plan.turns.references
    if path is None:
        return prompts
    found = import_answers(path)
    right = {prompt.id: answers_to_prompt(found, prompt) for prompt in prompts}
    if prompts and not any(right.values()):
        raise DataError(
            f"turns.references {path} has no answer to any of the {len(prompts)} prompts: its lines are found by the "
            "prompts' question_id"
        )
    return [replace(prompt, meta={**prompt.meta, REFERENCES: right[prompt.id] or []}) for prompt in prompts]


def _said(folder: EvaluationFolder, prompts: Sequence[PromptRecord]) -> dict[str, Conversations]:
    plan = folder.plan
    return {
        spec.name: read_conversations(
            prompts, spec, plan.generation, plan.turns, folder.outputs_path, folder.written_model(spec)
        )
        for spec in plan.models
    }


def _texts(said: Said) -> dict[str, dict[str, list[str]]]:
    return {
        name: {id_: [answer.text for answer in answers] for id_, answers in found.answers.items()}
        for name, found in said.items()
    }


def _grade_questions(prompts: Sequence[PromptRecord], said: Said) -> list[GradeQuestion]:
    return grade_questions(prompts, _texts(said))


def _pair_questions(
    folder: EvaluationFolder, prompts: Sequence[PromptRecord], said: Said
) -> list[TurnPairQuestion]:
    return turn_pair_questions(prompts, _texts(said), folder.plan.pairs)


def collect_grades(folder: EvaluationFolder) -> list[GradeRecord]:
    """Return the grades that there are, with the names of now.

    Raises:
        ConfigError: If a stage has not run, or ran with other settings.
        DataError: If a file is damaged.
    """
    prompts = _prompts(folder)
    return _graded(folder, _grade_questions(prompts, _said(folder, prompts))).records


def _graded(folder: EvaluationFolder, questions: Sequence[GradeQuestion]) -> Answered[GradeRecord]:
    judge, path = folder.judge_note(), folder.plan.folder / GRADES_FILE
    given = {record.key: record for record in read_ledger(path, GradeRecord)} if path.is_file() else {}
    return answers_to(questions, given.get, judge=judge.name, fingerprint=judge.fingerprint)


def _report_grades(folder: EvaluationFolder, prompts: Sequence[PromptRecord], said: Said) -> ReportPaths:
    plan, judge = folder.plan, folder.judge_note()
    answered = _graded(folder, _grade_questions(prompts, said))
    statistics = plan.statistics
    # A single model has nothing beside it.
    baseline = plan.baseline_name if len(plan.models) > 1 else None
    models = model_grades(
        answered.records,
        categories={prompt.id: prompt.category for prompt in prompts},
        baseline=baseline,
        confidence=statistics.confidence,
        num_resamples=statistics.bootstrap,
        seed=statistics.seed,
    )
    invalid = [
        f"{judge.name} gave no readable grade to {model.num_invalid:,} answers of {model.model}: the means leave "
        "these out."
        for model in models
        if model.num_invalid >= LOUD_INVALID_SHARE * (model.num_invalid + model.overall.num_grades)
        and model.num_invalid
    ]
    data = GradesData(
        prompts=prompts,
        answers={name: found.answers for name, found in said.items()},
        grades=answered.records,
        models=models,
        judge=judge.name,
        baseline=baseline,
        title=_title(folder),
        created=folder.created,
        alarms=[*_notes(folder, prompts, said, len(answered.unanswered)), *invalid, *_faults(said)],
        provenance=_provenance(folder, answered.records),
        confidence=statistics.confidence,
        num_resamples=statistics.bootstrap,
        seed=statistics.seed,
    )
    return write_grades_report(plan.folder, data)


def _report_pairs(folder: EvaluationFolder, prompts: Sequence[PromptRecord], said: Said) -> ReportPaths:
    plan, judge = folder.plan, folder.judge_note()
    path = folder.judgements_path
    given = {record.key: record for record in read_ledger(path)} if path.is_file() else {}
    questions = _pair_questions(folder, prompts, said)
    answered = answers_to(questions, given.get, judge=judge.name, fingerprint=judge.fingerprint)
    # A turn is a sample of its prompt.
    outputs = [
        replace(answer, id=id_, sample=turn)
        for found in said.values()
        for id_, answers in found.answers.items()
        for turn, answer in enumerate(answers)
    ]
    statistics = plan.statistics
    data = EvaluationData(
        prompts=prompts,
        outputs=outputs,
        judgements=answered.records,
        title=_title(folder),
        created=folder.created,
        baseline=plan.baseline_name,
        num_questions=len(questions),
        stopped=judge.stopped,
        notes=_notes(folder, prompts, said, 0),
        provenance=_provenance(folder, answered.records),
        confidence=statistics.confidence,
        num_resamples=statistics.bootstrap,
        seed=statistics.seed,
    )
    return write_evaluation_report(plan.folder, data)


def _title(folder: EvaluationFolder) -> str:
    return f"Conversations: {', '.join(model.name for model in folder.plan.models)}"


def _notes(
    folder: EvaluationFolder, prompts: Sequence[PromptRecord], said: Said, num_unanswered: int
) -> list[str]:
    notes = []
    stopped = folder.judge_note().stopped
    if stopped and folder.plan.grades:
        notes.append(
            f"The judging stopped early: {stopped}. Every figure rests on what was judged until then."
        )
    if num_unanswered:
        notes.append(
            f"{num_unanswered:,} answers have no grade yet: the means are not those of the whole sample."
        )
    for name, found in sorted(said.items()):
        if found.left_out:
            first = found.left_out[min(found.left_out)]
            notes.append(
                f"{name} could not be asked all turns of {len(found.left_out)} of {len(prompts)} prompts. The first "
                f"reason: {first}."
            )
    for source in folder.prompts_report()["sources"]:
        if source["quarantined"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in source["reasons"].items())
            notes.append(f"{source['quarantined']} of {source['rows']} rows gave no prompt: {reasons}.")
    return notes


def _faults(said: Said) -> list[str]:
    alarms = []
    for name, found in said.items():
        answers: list[OutputRecord] = [answer for given in found.answers.values() for answer in given]
        faulty = [answer for answer in answers if answer.flags]
        if faulty and len(faulty) >= LOUD_FAULT_SHARE * len(answers):
            kinds = ", ".join(sorted({flag.replace("_", " ") for answer in faulty for flag in answer.flags}))
            alarms.append(
                f"{len(faulty):,} of {len(answers):,} answers of {name} have faults of generation ({kinds}): a judge "
                "may have graded those rather than answers."
            )
    return alarms


def _provenance(
    folder: EvaluationFolder, records: Sequence[GradeRecord | JudgementRecord]
) -> dict[str, Mapping[str, Any]]:
    plan = folder.plan
    cost = sum(sorted(record.cost for record in records))
    drawn = folder.prompts_report()
    return {
        **{spec.name: without_secrets(folder.written_model(spec).provenance) for spec in plan.models},
        "judge": {
            **without_secrets(folder.judge_note().fingerprint),
            "replies": sum(record.attempts for record in records),
            "prompt_tokens": sum(record.prompt_tokens for record in records),
            "completion_tokens": sum(record.completion_tokens for record in records),
            **({"cost": round(cost, 6)} if cost else {}),
        },
        "prompts": {
            "source": plan.prompts["name"],
            "seed": drawn["settings"]["seed"],
            "drawn": drawn["drawn"],
            "distinct": drawn["distinct"],
            "references": plan.turns.references or "those of the prompts",
        },
    }
