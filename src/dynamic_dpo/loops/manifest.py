"""The manifest of a round: which stages are done, with which settings, and the hashes of what they read and left.

A stage counts as done once it stands here, and is then never run again: its settings must be those of now, and its
files those that it left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.loops.plan import Stage, StageName
from dynamic_dpo.utils.differences import differences
from dynamic_dpo.utils.files import write_json
from dynamic_dpo.utils.hashing import content_hash

FILE_NAME: Final = "manifest.json"
_VERSION = 1

RESULTS: Final[dict[str, tuple[str, ...]]] = {
    "rollout": ("prompts.jsonl", "outputs.jsonl", "pairs.jsonl", "summary.json"),
    "train": ("*.safetensors", "*.json"),
    "evaluate": ("prompts.jsonl", "generations.jsonl", "judgements.jsonl", "summary.json"),
}
"""Stage to the files that later stages and the page stand on."""


class Done(NamedTuple):
    """What is noted of a stage that is done.

    Attributes:
        settings: Its settings.
        inputs: What it read: the model by its name, and hashes of what earlier stages have left, by name.
        outputs: File in its folder to its SHA-256.
        seconds: How long it took in all, interrupted tries included as far as they were noted.
        stopped: Whether a limit of the judge's budget ended it before the end.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: float
    stopped: bool


class Manifest:
    """The manifest of one round, read on creation and replaced whole by every change.

    Args:
        folder: The round's folder; need not exist yet.
        settled: See `LoopPlan`.

    Raises:
        DataError: If the file is damaged or of another version.
    """

    def __init__(
        self,
        folder: Path,
        settled: Callable[[StageName, Mapping[str, Any]], Mapping[str, Any]] = lambda name, settings: (
            settings
        ),
    ) -> None:
        self.path = folder / FILE_NAME
        self._settled = settled
        self.stages: dict[str, Done] = {}
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError("another version")
            self.stages = {name: Done(**entry) for name, entry in content["stages"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is no manifest of this version: move {folder} away, or choose another "
                "iterate.output_dir"
            ) from error

    def put(self, stage: Stage, inputs: Mapping[str, str], *, seconds: float, stopped: bool) -> None:
        """Note that a stage is done, and the hashes of its files."""
        self.stages[stage.name] = Done(dict(stage.settings), dict(inputs), hashes(stage), seconds, stopped)
        entries = {name: done._asdict() for name, done in self.stages.items()}
        write_json(self.path, {"version": _VERSION, "stages": entries})

    def digest_of(self, name: StageName) -> str:
        """Return one hash of all that a stage that is done has left."""
        return content_hash(self.stages[name].outputs)

    def done(self, stage: Stage, inputs: Mapping[str, str]) -> Done | None:
        """Return what is noted of a stage, or ``None`` where it is not done.

        Args:
            stage: The stage, with the settings of now.
            inputs: What it would read now, as `put` was told.

        Raises:
            ConfigError: If it was done with other settings.
            DataError: If its files are not those that it left, or it read others than there are now.
        """
        noted = self.stages.get(stage.name)
        if noted is None:
            return None
        before, now = (
            json.loads(json.dumps(self._settled(stage.name, settings)))
            for settings in (noted.settings, stage.settings)
        )
        changes = list(differences(before, now))
        if changes:
            raise ConfigError(
                f"{stage.title} in {stage.folder} was made with other settings: {'; '.join(changes[:5])}. Take the "
                "change back, or choose another iterate.output_dir"
            )
        found = hashes(stage)
        wrong = sorted(
            name for name in {*found, *noted.outputs} if found.get(name) != noted.outputs.get(name)
        )
        if wrong:
            raise DataError(
                f"{stage.title}: {', '.join(wrong)} in {stage.folder} is not what it left: what comes after stands "
                f"on it. Put it back, or remove {self.path.parent} and the rounds after it, which are then made again"
            )
        if dict(inputs) != noted.inputs:
            raise DataError(
                f"{stage.title} in {stage.folder} was made from other files than there are now "
                f"({'; '.join(differences(noted.inputs, inputs))}): remove {self.path.parent} and the rounds after "
                "it, which are then made again"
            )
        return noted


def hashes(stage: Stage) -> dict[str, str]:
    """Return the SHA-256 of a stage's results that are there, by name."""
    paths = sorted({path for pattern in RESULTS[stage.name] for path in stage.folder.glob(pattern)})
    return {path.name: _sha256(path) for path in paths if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
