"""The wish of a signal that training end, on which all ranks agree before any of them acts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dynamic_dpo.utils.signals import stop_requested


class EvaluationCut(Exception):
    """A signal asked to stop in the middle of an evaluation; the resumed run evaluates first."""


class StopRequest:
    """Whether a signal has asked a run to stop, and what that leaves to the run that is resumed.

    Args:
        trainer: The run's trainer.

    Attributes:
        signal: The signal that ends training, ``None`` as long as the ranks have agreed on none.
        evaluation_pending: Whether an evaluation that was due was left to the resumed run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.signal: int | None = None
        self.evaluation_pending = False

    def forget(self) -> None:
        """Begin anew: what stopped one training does not stop the next one of the same trainer."""
        self.signal = None
        self.evaluation_pending = False

    def agreed(self) -> bool:
        """Return whether a signal has asked any rank to stop. Collective over ranks."""
        accelerator = self.trainer.accelerator
        asked = stop_requested() or 0
        if accelerator.num_processes > 1:
            mine = torch.tensor([asked], dtype=torch.int64, device=accelerator.device)
            asked = int(accelerator.gather(mine).max())
        self.signal = self.signal or asked or None
        return self.signal is not None

    def cuts(self, batches: Any) -> Iterator[Any]:
        """Yield an evaluation's batches as long as nothing asks training to stop. Collective over ranks.

        A step is never cut; an evaluation is, since it may take longer than the time that is left.

        Raises:
            EvaluationCut: Once a signal has asked training to stop; outside training it is not looked for.
        """
        for batch in batches:
            if self.trainer.is_in_train and self.agreed():
                raise EvaluationCut
            yield batch

    def save_and_stop(self) -> None:
        """Tell the training loop to save and end here, and to leave an evaluation that is due."""
        control = self.trainer.control
        self.evaluation_pending |= control.should_evaluate
        control.should_evaluate = False
        control.should_save = control.should_training_stop = True
