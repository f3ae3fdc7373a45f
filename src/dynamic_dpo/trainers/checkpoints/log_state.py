"""What a run's next log entries are made of, kept in its checkpoints, so that a resumed run logs what it would have.

The Hugging Face trainer gathers losses between two entries, and over the run for the last one, and forgets both with
the process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback


class LogState(TrainerCallback):  # type: ignore[misc]
    """The losses since the last log entry and those of the whole run, and an evaluation that a stop has left undone.

    As a callback it puts back what the trainer's loop empties when training begins.

    Args:
        trainer: The run's trainer, a `ResumableTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._restored: Mapping[str, Any] | None = None

    def mean_loss(self) -> float:
        """Return the mean loss of the whole run's steps so far, once the loop has ended. Collective over ranks.

        The loop's own is over the steps of this call alone, and takes those since the last entry from one rank.
        """
        trainer = self.trainer
        total = float(trainer._total_loss_scalar)
        if trainer.accelerator.num_processes > 1:
            mine = torch.tensor([total], dtype=torch.float64, device=trainer.accelerator.device)
            total = float(trainer.accelerator.gather(mine).mean())
        return total / max(int(trainer.state.global_step), 0.001)

    def gather(self) -> dict[str, Any]:
        """Return the state as JSON types. Collective over ranks."""
        trainer = self.trainer
        losses = trainer.accelerator.gather(trainer._tr_loss.detach().reshape(1)).tolist()
        return {
            "loss_sums": [json_number(loss) for loss in losses],
            "loss_total": json_number(trainer._total_loss_scalar),
            "steps": trainer.state.global_step - trainer._globalstep_last_logged,
            "evaluation_pending": trainer.stopping.evaluation_pending,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `gather` gave, to be put back when training begins."""
        self._restored = state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back what was gathered: the loop has emptied its sums and made no step yet."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        trainer = self.trainer
        losses = [float(loss) for loss in restored["loss_sums"]]
        same_ranks = len(losses) == trainer.accelerator.num_processes
        mean = sum(losses) / len(losses)
        trainer._tr_loss += losses[trainer.accelerator.process_index] if same_ranks else mean
        trainer._globalstep_last_logged -= int(restored["steps"])
        # Checkpoints of earlier versions keep no total: what was logged adds up to it.
        total = restored.get("loss_total")
        trainer._total_loss_scalar = _logged_total(state.log_history) if total is None else float(total)
        if restored["evaluation_pending"]:
            # The signal left no time for it; the uninterrupted run would have made it here.
            metrics = trainer._evaluate(None, None)
            trainer._determine_best_metric(metrics=metrics, trial=None)


def json_number(loss: float) -> float | str:
    """Return a number as JSON can hold it; ``float`` reads it back, NaN and infinity too."""
    return loss if math.isfinite(loss) else str(loss)


def _logged_total(history: list[dict[str, Any]]) -> float:
    """Return the sum of the steps' losses behind the log entries of a run."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total
