"""Ends a Hugging Face trainer's training in a checkpoint when a signal asks for it, on every rank at the same step.

A step is never cut; an evaluation is, since it may take longer than the time that is left. Knows signals by
`dynamic_dpo.utils.signals` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dynamic_dpo.utils.signals import Interrupted, stop_requested


class EvaluationCut(Exception):
    """A signal asked to stop in the middle of an evaluation; the resumed run evaluates first."""


class StopsWhenAsked:
    """Mixed into a `transformers.Trainer`, before it in the order of bases.

    Attributes:
        stop_signal: The signal that has ended training, or ``None``.
        evaluation_pending: Whether an evaluation that was due was left to the resumed run.
    """

    accelerator: Any
    control: Any
    state: Any
    stop_signal: int | None = None
    evaluation_pending = False
    _saved_step = -1

    def stop_agreed(self) -> bool:
        """Return whether a signal has asked any rank to stop. Collective over ranks."""
        asked = stop_requested() or 0
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([asked], dtype=torch.int64, device=self.accelerator.device)
            asked = int(self.accelerator.gather(mine).max())
        self.stop_signal = self.stop_signal or asked or None
        return self.stop_signal is not None

    def until_stopped(self, batches: Any) -> Iterator[Any]:
        """Yield an evaluation's batches; raise `EvaluationCut` once training was asked to stop."""
        for batch in batches:
            if getattr(self, "is_in_train", False) and self.stop_agreed():
                raise EvaluationCut
            yield batch

    def raise_if_stopped(self) -> None:
        """Raise `Interrupted` if training has ended because a signal asked for it. Collective over ranks.

        A signal that came in the middle of the last checkpoint counts too; one after it, without a checkpoint of
        the last step, does not: what was trained would be lost.
        """
        if self._saved_step == self.state.global_step:
            self.stop_agreed()
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self._saved_step = self.state.global_step

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        epoch = self.state.epoch or 0.0
        if (
            self.stop_signal is not None
            and epoch != int(epoch)
            and self.state.global_step < self.state.max_steps
        ):
            # The parent comes by as if the epoch had ended. It has not: that entry belongs to the resumed run.
            return
        if self.stop_agreed():
            self._stop_here()
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationCut:
            self._stop_here()
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _stop_here(self) -> None:
        self.evaluation_pending |= self.control.should_evaluate
        self.control.should_evaluate = False
        self.control.should_save = self.control.should_training_stop = True
