"""What the stages of an evaluation have made so far, gathered for judging and for the report.

Reads the evaluation's files by its manifest and takes nothing that other settings made. Asks and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.generate.ready import ModelOutputs, is_ready
from dynamic_dpo.eval.generate.stage import read_outputs
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.judging.questions import Question, make_questions
from dynamic_dpo.eval.manifest import Manifest
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.plan import EvaluationPlan
from dynamic_dpo.eval.prompts.sets import read_prompts
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord

PROMPTS_FILE = "prompts.jsonl"


class Scores(NamedTuple):
    """Log-probabilities of one model, in nats.

    Attributes:
        margins: Of the held-out pairs, without beta.
        policy_logps: Of the model's own outputs under it.
        reference_logps: The same under the reference.
    """

    margins: list[float]
    policy_logps: list[float]
    reference_logps: list[float]


class Evaluated(NamedTuple):
    """What an evaluation has come to, before statistics.

    Attributes:
        prompts: The prompts.
        outputs: The models' outputs.
        left_out: Model name to the prompts it could not be asked, with the reason.
        records: One judgement for every answered question.
        num_questions: Questions there are.
        num_missing_outputs: Prompts and models without an output.
        judge: The judge's name.
        fingerprint: All that its verdicts depend on.
        stopped: Which limit of the budget ended the judging, in words; ``None`` if none did.
        provenance: Of every model, by name.
        prompts_report: Counts of the prompts.
        created: When the evaluation was begun.
        scores: Of every model that was scored, by name.
    """

    prompts: list[PromptRecord]
    outputs: list[OutputRecord]
    left_out: dict[str, dict[str, str]]
    records: list[JudgementRecord]
    num_questions: int
    num_missing_outputs: int
    judge: str
    fingerprint: dict[str, Any]
    stopped: str | None
    provenance: dict[str, dict[str, Any]]
    prompts_report: dict[str, Any]
    created: str
    scores: dict[str, Scores]

    @property
    def num_unanswered(self) -> int:
        """Questions without an answer."""
        return self.num_questions - len(self.records)


def collect(plan: EvaluationPlan) -> Evaluated:
    """Return what the stages before the report have made; asks and writes nothing.

    Raises:
        ConfigError: If a stage has not run, or ran with other settings.
        DataError: If a file is damaged.
    """
    manifest = Manifest(plan.folder)
    prompts = prompts_of(plan, manifest)
    by_model = outputs_of(plan, prompts, manifest)
    questions, missing = questions_of(plan, prompts, by_model)
    note = manifest.require("judge", plan.judging.identity, stage="judge", keys="judge or gpt4_oracle")
    ledger = plan.folder / plan.judgements_file
    answers = {record.key: record for record in read_ledger(ledger)} if ledger.is_file() else {}
    return Evaluated(
        prompts=prompts,
        outputs=[output for outputs in by_model.values() for output in outputs.outputs],
        left_out={name: outputs.left_out for name, outputs in by_model.items() if outputs.left_out},
        records=_answered(questions, note, answers),
        num_questions=len(questions),
        num_missing_outputs=missing,
        judge=note["name"],
        fingerprint=note["fingerprint"],
        stopped=note["stopped"],
        provenance={spec.name: model_note(plan, spec, manifest)["provenance"] for spec in plan.models},
        prompts_report=manifest.require("prompts", plan.prompts, stage="prepare", keys="dataset"),
        created=manifest.created,
        scores=_scores(plan, prompts, manifest),
    )


def prompts_of(plan: EvaluationPlan, manifest: Manifest) -> list[PromptRecord]:
    """Return the prompts that the stage prepare has drawn with the plan's settings."""
    manifest.require("prompts", plan.prompts, stage="prepare", keys="dataset")
    return read_prompts(plan.folder / PROMPTS_FILE)


def model_note(plan: EvaluationPlan, spec: ModelSpec, manifest: Manifest) -> dict[str, Any]:
    """Return what the stage generate has noted about a model: ``fingerprint`` and ``provenance``."""
    keys = f"dataset, generation or models.{spec.name}"
    note: dict[str, Any] = manifest.require(
        f"model {spec.name}", plan.asked_of(spec), stage="generate", keys=keys
    )
    return note


def outputs_of(
    plan: EvaluationPlan, prompts: Sequence[PromptRecord], manifest: Manifest
) -> dict[str, ModelOutputs]:
    """Return every model's outputs, by its name."""
    found = {}
    for spec in plan.models:
        note = model_note(plan, spec, manifest)
        found[spec.name] = read_outputs(
            plan.folder / plan.generations_file,
            prompts,
            spec,
            note["fingerprint"],
            plan.generation.num_samples,
        )
    return found


def questions_of(
    plan: EvaluationPlan, prompts: Sequence[PromptRecord], by_model: Mapping[str, ModelOutputs]
) -> tuple[list[Question], int]:
    """Return the questions, and how many prompts lack an output although their model could be asked."""
    outputs = [output for found in by_model.values() for output in found.outputs]
    judging = plan.judging
    fixed = not judging.both_orders and not judging.randomize_order
    made = make_questions(
        prompts, outputs, plan.pairs, both_orders=judging.both_orders or fixed, seed=judging.seed
    )
    lost = [(id_, name) for id_, name in made.missing if id_ not in by_model[name].left_out]
    if lost:
        raise DataError(
            f"{len(lost)} outputs are missing from {plan.folder / plan.generations_file} (the first: {lost[0][1]} on "
            f"prompt {lost[0][0]}): run the stage generate again"
        )
    questions = made.questions
    if fixed:
        questions = [
            question for question in questions if (question.first, question.second) in set(plan.pairs)
        ]
    return questions, len(made.missing)


def scored_with(plan: EvaluationPlan, fingerprint: str, prompts: Sequence[PromptRecord]) -> list[Any]:
    """Return the settings that a model's scores are made with."""
    assert plan.scoring is not None
    return [asdict(plan.scoring), fingerprint, [prompt.id for prompt in prompts], plan.measures_kl]


def _scores(plan: EvaluationPlan, prompts: Sequence[PromptRecord], manifest: Manifest) -> dict[str, Scores]:
    if plan.scoring is None:
        return {}
    found = {}
    for spec in plan.models:
        if not is_ready(spec):
            note = model_note(plan, spec, manifest)
            result = manifest.require(
                f"scores {spec.name}",
                scored_with(plan, note["fingerprint"], prompts),
                stage="generate",
                keys="scoring",
            )
            found[spec.name] = Scores(**result)
    return found


def _answered(
    questions: Sequence[Question], note: Mapping[str, Any], answers: Mapping[str, JudgementRecord]
) -> list[JudgementRecord]:
    """Put the models' names to the answers; of questions that share one, the first carries its cost."""
    records, paid = [], set()
    for question in questions:
        key = question.key(note["fingerprint"])
        if key not in answers:
            continue
        record = replace(
            answers[key],
            id=question.prompt.id,
            sample=question.sample,
            judge=note["name"],
            first=question.first,
            second=question.second,
        )
        if key in paid:
            record = replace(record, attempts=0, prompt_tokens=0, completion_tokens=0, cost=0.0)
        paid.add(key)
        records.append(record)
    return records
