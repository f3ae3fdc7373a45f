"""What a loop is to do: its folder, its rounds, and the settings that the stages of every round start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dynamic_dpo.loops.settings import LoopSettings

StageName = Literal["rollout", "train", "evaluate"]
INITIAL = "initial"
"""Name of the model before the first round, in evaluations."""


class Stage(NamedTuple):
    """One command of a round.

    Attributes:
        round: The round, from 1.
        name: Which command it is.
        folder: Where its results go.
        settings: The settings file of the command, as plain values.
        launch: Words before the command; ``None`` for none.
    """

    round: int
    name: StageName
    folder: Path
    settings: Mapping[str, Any]
    launch: str | None = None

    @property
    def title(self) -> str:
        """The stage in words."""
        return f"round {self.round}: {self.name}"


@dataclass(frozen=True)
class LoopPlan:
    """Everything a loop does.

    Attributes:
        settings: How rounds follow each other.
        training: The training file with its section on rollouts, as plain values.
        evaluation: The sections of an evaluation file that stay the same: ``dataset``, ``generation``, ``judge`` …
        excluded: Prompts that are never sampled, each as messages: those of the evaluations.
        measures_kl: Whether the evaluation's outputs allow an estimate of the KL.
        run: Runs a stage and returns its exit code.
        settled: Fills in what the settings of a stage leave open, so that an earlier version's compare.
    """

    settings: LoopSettings
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    run: Callable[[Stage], int]
    excluded: Callable[[], list[list[dict[str, Any]]]] = field(default=list)
    measures_kl: bool = False
    settled: Callable[[StageName, Mapping[str, Any]], Mapping[str, Any]] = lambda name, settings: settings

    @property
    def folder(self) -> Path:
        """The folder of everything."""
        return Path(self.settings.output_dir).expanduser()

    def folder_of(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.folder / f"round-{number}"

    @property
    def excluded_path(self) -> Path:
        """The file of prompts that are never sampled."""
        return self.folder / "excluded-prompts.jsonl"

    def model_before(self, number: int) -> str:
        """Return the model that a round begins with, as a path or name."""
        return str(self.training["policy_name"] if number == 1 else self.folder_of(number - 1) / "train")

    @staticmethod
    def name_of_model(number: int) -> str:
        """Return the name, in evaluations, of the model that a round has trained; of 0 that of the first."""
        return INITIAL if number == 0 else f"round-{number}"
