"""The folder of one evaluation: where its files are, and what in them was made with the settings of now.

Opened once and handed from stage to stage. A stage asks here for what the stages before it have left, leaves its own
notes here, and never gets what other settings made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.generate.ready import ModelOutputs, WrittenModel
from dynamic_dpo.eval.generate.stage import read_outputs
from dynamic_dpo.eval.judging.questions import Questions, make_questions
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.notes import StageNotes
from dynamic_dpo.eval.plan import EvaluationPlan, JudgingSettings
from dynamic_dpo.eval.prompts.sets import PromptSet, read_prompts, write_prompts
from dynamic_dpo.eval.records import PromptRecord

PROMPTS_FILE = "prompts.jsonl"


class JudgeNote(NamedTuple):
    """What the stage judge leaves beside its answers.

    Attributes:
        name: The judge's name.
        fingerprint: All that its verdicts depend on; answers are found by it.
        stopped: Which limit of the budget ended the judging, in words; ``None`` if none did.
    """

    name: str
    fingerprint: dict[str, Any]
    stopped: str | None = None


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


class EvaluationFolder:
    """The opened folder of one evaluation.

    Args:
        plan: What the evaluation is to do; names the folder, which need not exist yet.

    Attributes:
        plan: The plan.

    Raises:
        DataError: If the folder's notes are damaged or of another version.
    """

    def __init__(self, plan: EvaluationPlan) -> None:
        self.plan = plan
        self._notes = StageNotes(plan.folder)

    @property
    def created(self) -> str:
        """When the evaluation was begun, in UTC."""
        return self._notes.created

    @property
    def prompts_path(self) -> Path:
        """The file of prompts."""
        return self.plan.folder / PROMPTS_FILE

    @property
    def outputs_path(self) -> Path:
        """The file of all models' outputs."""
        return self.plan.folder / self.plan.generations_file

    @property
    def judgements_path(self) -> Path:
        """The file of the judge's answers."""
        return self.plan.folder / self.plan.judgements_file

    @property
    def summary_path(self) -> Path:
        """The file of the report's numbers."""
        return self.plan.folder / self.plan.summary_file

    # ---- the stage prepare ----

    def has_prompts(self) -> bool:
        """Return whether the prompts of these settings are there."""
        return self.prompts_path.is_file() and self._notes.get("prompts", self.plan.prompts) is not None

    def write_prompts(self, found: PromptSet) -> None:
        """Write the prompts and note how they were drawn."""
        write_prompts(self.prompts_path, found.prompts)
        # After the file: a crash between the two prepares again instead of trusting another draw.
        self._notes.put("prompts", self.plan.prompts, found.report)

    def prompts_report(self) -> dict[str, Any]:
        """Return the counts of the prompts, see `PromptSet`.

        Raises:
            ConfigError: If the prompts were not prepared, or by other settings.
        """
        report: dict[str, Any] = self._notes.require(
            "prompts", self.plan.prompts, stage="prepare", keys="dataset"
        )
        return report

    def prompts(self) -> list[PromptRecord]:
        """Return the prompts.

        Raises:
            ConfigError: If they were not prepared, or by other settings.
            DataError: If their file is damaged.
        """
        self.prompts_report()
        return read_prompts(self.prompts_path)

    # ---- the stage generate ----

    def note_model(self, spec: ModelSpec, written: WrittenModel) -> None:
        """Note that a model has written its outputs."""
        self._notes.put(f"model {spec.name}", self.plan.asked_of(spec), written._asdict())

    def written_model(self, spec: ModelSpec) -> WrittenModel:
        """Return what identifies a model's outputs.

        Raises:
            ConfigError: If the model has not written, or with other settings.
        """
        keys = f"dataset, generation or models.{spec.name}"
        note = self._notes.require(
            f"model {spec.name}", self.plan.asked_of(spec), stage="generate", keys=keys
        )
        return WrittenModel(**note)

    def outputs(self, prompts: Sequence[PromptRecord]) -> dict[str, ModelOutputs]:
        """Return every model's outputs for the prompts, by its name.

        Raises:
            ConfigError: If a model has not written, or with other settings.
            DataError: If a file is damaged.
        """
        return {
            spec.name: read_outputs(
                self.outputs_path,
                prompts,
                spec,
                self.written_model(spec).fingerprint,
                self.plan.generation.num_samples,
            )
            for spec in self.plan.models
        }

    def note_scores(self, spec: ModelSpec, prompts: Sequence[PromptRecord], scores: Scores) -> None:
        """Keep what scoring a model gave."""
        self._notes.put(f"scores {spec.name}", self._scored_with(spec, prompts), scores._asdict())

    def has_scores(self, spec: ModelSpec, prompts: Sequence[PromptRecord]) -> bool:
        """Return whether a model was scored with these settings."""
        return self._notes.get(f"scores {spec.name}", self._scored_with(spec, prompts)) is not None

    def scores(self, spec: ModelSpec, prompts: Sequence[PromptRecord]) -> Scores:
        """Return what scoring a model gave.

        Raises:
            ConfigError: If it was not scored, or with other settings.
        """
        settings = self._scored_with(spec, prompts)
        return Scores(
            **self._notes.require(f"scores {spec.name}", settings, stage="generate", keys="scoring")
        )

    def _scored_with(self, spec: ModelSpec, prompts: Sequence[PromptRecord]) -> list[Any]:
        assert self.plan.scoring is not None
        fingerprint = self.written_model(spec).fingerprint
        return [
            asdict(self.plan.scoring),
            fingerprint,
            [prompt.id for prompt in prompts],
            self.plan.measures_kl,
        ]

    # ---- the stage judge ----

    def questions(self, prompts: Sequence[PromptRecord], by_model: Mapping[str, ModelOutputs]) -> Questions:
        """Return what the judge is asked; outputs are missing only of models that could not be asked for them.

        Args:
            prompts: See `prompts`.
            by_model: See `outputs`.

        Raises:
            DataError: If a model that could be asked lacks an output.
        """
        judging = self.plan.judging
        fixed_order = not judging.both_orders and not judging.randomize_order
        made = make_questions(
            prompts,
            [output for found in by_model.values() for output in found.outputs],
            self.plan.pairs,
            both_orders=judging.both_orders or fixed_order,
            seed=judging.seed,
        )
        lost = [(id_, name) for id_, name in made.missing if id_ not in by_model[name].left_out]
        if lost:
            raise DataError(
                f"{len(lost)} outputs are missing from {self.outputs_path} (the first: {lost[0][1]} on prompt "
                f"{lost[0][0]}): run the stage generate again"
            )
        if not fixed_order:
            return made
        pairs = set(self.plan.pairs)
        return made._replace(questions=[q for q in made.questions if (q.first, q.second) in pairs])

    def note_judge(self, note: JudgeNote, further: str | None = None) -> None:
        """Note who judges, or has judged.

        Args:
            note: About the judge.
            further: Its name in the plan, where it is not the first judge.
        """
        entry, judging, _ = self._judging(further)
        self._notes.put(entry, judging.identity, note._asdict())

    def judge_note(self, further: str | None = None) -> JudgeNote:
        """Return who has judged.

        Args:
            further: As for `note_judge`.

        Raises:
            ConfigError: If nobody has, or with other settings.
        """
        entry, judging, keys = self._judging(further)
        return JudgeNote(**self._notes.require(entry, judging.identity, stage="judge", keys=keys))

    def _judging(self, further: str | None) -> tuple[str, JudgingSettings, str]:
        if further is None:
            return "judge", self.plan.judging, "judge or gpt4_oracle"
        return f"judge {further}", self.plan.further_judges[further], f"judges.{further}"


def check_judges(notes: Sequence[JudgeNote]) -> None:
    """Refuse two judges of one name, whose verdicts would be pooled, and two names of one judge.

    Raises:
        ConfigError: If there are such.
    """
    first, *others = notes
    if first.name in [note.name for note in others]:
        raise ConfigError(f"judges.{first.name} has the name of the first judge: give it another one")
    for number, note in enumerate(notes):
        for other in notes[:number]:
            if note.fingerprint == other.fingerprint:
                raise ConfigError(
                    f"judges.{note.name} is the same judge as {other.name}: both would find the same answers; "
                    "leave it out, or let it differ in model, template or temperature"
                )
