"""What a sweep is to do: its folder, its trainings with their settings, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.sweeps.figures import Criterion

BASELINE = "reference"
"""Name of the model before training, in the sweep's evaluation."""


class Training(NamedTuple):
    """One training of a sweep.

    Attributes:
        name: Its name, and that of its folder.
        overrides: ``key=value`` of what is its own.
        settings: The whole of its settings, as plain values.
    """

    name: str
    overrides: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep.

    Attributes:
        folder: Where everything goes.
        trainings: The trainings, in the order in which they begin.
        places: For each training at once, what it finds in its environment besides.
        criterion: By what the best is found.
        shares_loss: Whether the loss means the same in all of them, so that it can be compared.
        evaluation: Settings of ``evaluate``, with all of the models, or ``None``.
        prepare: Writes the settings of a command to a file, and returns the words that run it: from its name, the
            file and the settings.
        settled: From settings to the same with all defaults of now.
        command: The words before the overrides in the command that the best is trained with, for the page.
    """

    folder: Path
    trainings: Sequence[Training]
    places: Sequence[Mapping[str, str]]
    criterion: Criterion
    shares_loss: bool
    evaluation: Mapping[str, Any] | None
    prepare: Callable[[str, Path, Mapping[str, Any]], list[str]]
    settled: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    command: str

    def folder_of(self, training: Training) -> Path:
        """Return the folder of a training."""
        return self.folder / "runs" / training.name
