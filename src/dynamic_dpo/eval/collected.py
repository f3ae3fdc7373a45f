"""What an evaluation has come to, gathered from its folder for the report and for other tools' files."""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamic_dpo.eval.folder import EvaluationFolder, Scores, check_judges
from dynamic_dpo.eval.generate.ready import is_ready
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.judging.questions import answers_to
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord


class Evaluated(NamedTuple):
    """What an evaluation has come to, before statistics.

    Attributes:
        prompts: The prompts.
        outputs: The models' outputs.
        left_out: Model name to the prompts it could not be asked, with the reason.
        records: One judgement for every answered question, of every judge.
        num_questions: Questions there are, counted for every judge.
        num_missing_outputs: Prompts and models without an output.
        judge: The first judge's name.
        fingerprint: All that its verdicts depend on.
        further: Name of every further judge to all that its verdicts depend on.
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
    further: dict[str, dict[str, Any]]
    stopped: str | None
    provenance: dict[str, dict[str, Any]]
    prompts_report: dict[str, Any]
    created: str
    scores: dict[str, Scores]

    @property
    def num_unanswered(self) -> int:
        """Questions without an answer."""
        return self.num_questions - len(self.records)


def collect(folder: EvaluationFolder) -> Evaluated:
    """Return what the stages before the report have made; asks and writes nothing.

    Raises:
        ConfigError: If a stage has not run, or ran with other settings.
        DataError: If a file is damaged.
    """
    plan = folder.plan
    prompts = folder.prompts()
    by_model = folder.outputs(prompts)
    made = folder.questions(prompts, by_model)
    judge, *others = notes = [folder.judge_note(name) for name in (None, *plan.further_judges)]
    check_judges(notes)
    ledger = folder.judgements_path
    answers = {record.key: record for record in read_ledger(ledger)} if ledger.is_file() else {}
    records = [
        record
        for note in notes
        for record in answers_to(
            made.questions, answers.get, judge=note.name, fingerprint=note.fingerprint
        ).records
    ]
    scored = [spec for spec in plan.models if plan.scoring is not None and not is_ready(spec)]
    return Evaluated(
        prompts=prompts,
        outputs=[output for outputs in by_model.values() for output in outputs.outputs],
        left_out={name: outputs.left_out for name, outputs in by_model.items() if outputs.left_out},
        records=records,
        num_questions=len(made.questions) * len(notes),
        num_missing_outputs=len(made.missing),
        judge=judge.name,
        fingerprint=judge.fingerprint,
        further={note.name: note.fingerprint for note in others},
        stopped=next((note.stopped for note in notes if note.stopped), None),
        provenance={spec.name: folder.written_model(spec).provenance for spec in plan.models},
        prompts_report=folder.prompts_report(),
        created=folder.created,
        scores={spec.name: folder.scores(spec, prompts) for spec in scored},
    )
