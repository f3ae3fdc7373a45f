"""The folder of one rollout: where its files are, and that nothing in it was made with other settings.

Answers of another model, template or sampling have no place beside those of now: a folder that holds such is refused,
with the difference. Labels and pairs may be made anew at any time; scores and verdicts are found by content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.data.sources import PAIRS_FILE
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.ready import WrittenModel
from dynamic_dpo.eval.generate.stage import identify_model
from dynamic_dpo.eval.notes import StageNotes
from dynamic_dpo.eval.prompts.sets import read_prompts, write_prompts
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.plan import Comparing, RolloutPlan
from dynamic_dpo.rollouts.prompts import DrawnPrompts
from dynamic_dpo.rollouts.samples import Samples
from dynamic_dpo.utils.differences import differences

# Where a model is says nothing about it; its files do.
_PLACES = ("path", "revision", "adapter_of")


class LabelNote(NamedTuple):
    """What the stage label leaves beside its scores or verdicts.

    Attributes:
        fingerprints: All that labels depend on: of each scorer, or of the judge, by name.
        stopped: Which limit of the judge's budget ended it, in words; ``None`` if none did.
    """

    fingerprints: dict[str, dict[str, Any]]
    stopped: str | None = None


class RolloutFolder:
    """The opened folder of one rollout.

    Args:
        plan: What the rollout is to do; names the folder, which need not exist yet.

    Attributes:
        plan: The plan.
        written: What identifies each model's answers, by its name.

    Raises:
        ConfigError: If the folder holds answers that other settings made, or a setting cannot be carried out here.
        DataError: If the folder's notes are damaged or of another version.
        ModelError: If there is no such model.
    """

    def __init__(self, plan: RolloutPlan) -> None:
        self.plan = plan
        self._notes = StageNotes(plan.folder)
        self.written: dict[str, WrittenModel] = {
            spec.name: identify_model(spec, plan.generation) for spec in plan.models
        }
        self._claim()

    @property
    def prompts_path(self) -> Path:
        """The file of prompts."""
        return self.plan.folder / "prompts.jsonl"

    @property
    def outputs_path(self) -> Path:
        """The file of all answers."""
        return self.plan.folder / "outputs.jsonl"

    @property
    def scores_path(self) -> Path:
        """The file of scores."""
        return self.plan.folder / "scores.jsonl"

    @property
    def judgements_path(self) -> Path:
        """The file of a judge's verdicts."""
        return self.plan.folder / "judgements.jsonl"

    @property
    def pairs_path(self) -> Path:
        """The file of pairs."""
        return self.plan.folder / PAIRS_FILE

    @property
    def dropped_path(self) -> Path:
        """The file of what is in no pair."""
        return self.plan.folder / "dropped.jsonl"

    @property
    def summary_path(self) -> Path:
        """The file of numbers."""
        return self.plan.folder / "summary.json"

    @property
    def page_path(self) -> Path:
        """The page."""
        return self.plan.folder / "report.html"

    # ---- prompts ----

    def has_prompts(self) -> bool:
        """Return whether the prompts of these settings are there."""
        return self.prompts_path.is_file() and self._notes.get("prompts", self.plan.drawing()) is not None

    def put_prompts(self, drawn: DrawnPrompts) -> None:
        """Write the prompts and note how they were drawn."""
        write_prompts(self.prompts_path, drawn.prompts)
        # After the file: a crash between the two draws again instead of trusting another draw.
        note = {"excluded": drawn.excluded, "report": drawn.report}
        self._notes.put("prompts", self.plan.drawing(), note)

    def prompts(self) -> list[PromptRecord]:
        """Return the prompts, in the order of the draw.

        Raises:
            ConfigError: If they were not drawn, or by other settings.
            DataError: If their file is damaged.
        """
        self.prompts_note()
        return read_prompts(self.prompts_path)

    def prompts_note(self) -> dict[str, Any]:
        """Return what was noted of the draw: ids ``excluded``, and the ``report`` of counts."""
        note: dict[str, Any] = self._notes.require(
            "prompts", self.plan.drawing(), stage="prepare", keys="rollout.prompts, limit or shard"
        )
        return note

    # ---- answers ----

    def samples(self, prompts: list[PromptRecord]) -> Samples:
        """Return the answers that were written.

        Raises:
            DataError: If a file is damaged.
        """
        plan = self.plan
        return Samples(self.outputs_path, plan.models, self.written, prompts, plan.generation.num_samples)

    # ---- labels ----

    def put_labels(self, note: LabelNote) -> None:
        """Note who labels, or has labelled."""
        self._notes.put("labels", label_identity(self.plan), note._asdict())

    def labels_note(self) -> LabelNote:
        """Return who has labelled.

        Raises:
            ConfigError: If nobody has, or with other settings.
        """
        keys = "rollout.judge and what belongs to it"
        return LabelNote(**self._notes.require("labels", label_identity(self.plan), stage="label", keys=keys))

    # ---- whose folder it is ----

    def sampling(self) -> dict[str, Any]:
        """Return, as JSON types, all that the answers in the folder depend on, and which of the prompts are ours."""
        prompts = self.plan.drawing()
        # More prompts of one draw are more of the same.
        kept = {name: value for name, value in prompts.items() if name not in ("limit", "skip", "exclude")}
        models = {
            name: {key: value for key, value in written.provenance.items() if key not in _PLACES}
            for name, written in self.written.items()
        }
        return {"prompts": kept, **models}

    def _claim(self) -> None:
        ours = self.sampling()
        theirs = self._notes.get("sampling", None)
        if theirs is None:
            self._notes.put("sampling", None, ours)
            return
        changes = list(differences(theirs, ours))
        if changes:
            raise ConfigError(
                f"{self.plan.folder} holds answers that were made otherwise: {'; '.join(changes)}. Take the "
                "change back, or choose another rollout.output_dir"
            )


def label_identity(plan: RolloutPlan) -> Any:
    """Return, as JSON types, the settings that labels depend on."""
    if plan.labels is None:
        return None
    if isinstance(plan.labels, Comparing):
        return {"judge": dict(plan.labels.judging.identity)}
    return {"scorers": {name: dict(scorer.identity) for name, scorer in plan.labels.scorers.items()}}
