"""What a preference run writes of itself: margins at every controller update, and the record of the whole run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from dynamic_dpo.runs.margin_log import MarginLog
from dynamic_dpo.runs.summary import write_run_summary
from dynamic_dpo.trainers.checkpoints.identity import data_fingerprint
from dynamic_dpo.trainers.ranks import check_ranks_agree
from dynamic_dpo.trainers.referenced_data import ReferencedData
from dynamic_dpo.trainers.watch.cost import RunCost
from dynamic_dpo.trainers.whole_step import WholeStep

logger = logging.getLogger("dynamic_dpo")


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes the margin logs of a run, and leaves its record.

    Args:
        trainer: The run's trainer; its arguments and its state are read.
        whole_step: The run's optimizer step, with the method, the guard and the counts.
        data: The run's data sets, with the number of pairs that the reference has scored.
        cost: What the run's steps have cost.
        margin_logs: This rank's margin logs.
        pairs_per_update: Pairs of a controller update over all ranks.
        started: When the run began, in seconds since the epoch; loading models counts.
        flush_denormal: Whether denormal floats are taken as 0.
        config: The run's whole configuration, to be hashed; by default the training arguments.
    """

    def __init__(
        self,
        trainer: Any,
        whole_step: WholeStep,
        data: ReferencedData,
        cost: RunCost,
        *,
        margin_logs: Sequence[MarginLog],
        pairs_per_update: int,
        started: float,
        flush_denormal: bool,
        config: Mapping[str, Any] | None,
    ) -> None:
        self.trainer = trainer
        self.whole_step = whole_step
        self.data = data
        self.cost = cost
        self.margin_logs = margin_logs
        self.pairs_per_update = pairs_per_update
        self.started = started
        self.flush_denormal = flush_denormal
        self.config = config
        self._num_pairs_before = 0

    # ---- while training runs ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the margin logs of an earlier run out of the way; a run that is resumed goes on with its own."""
        if state.global_step > 0:
            self._num_pairs_before = self.whole_step.num_pairs
            return
        for log in self.margin_logs:
            if moved := log.start_anew():
                logger.warning("an earlier run's margin log was moved to %s", moved)

    def log_update(self, margins: Tensor, local: Tensor, update: int, reading: Mapping[str, float]) -> None:
        """Log one controller update. Collective over ranks, whose controllers are compared.

        Args:
            margins: All ranks' margins, nats, on the CPU. Shape [N].
            local: This rank's. Shape [B].
            update: Number of the update, from 1.
            reading: What the method says of it.

        Raises:
            ModelError: If the ranks' controllers differ.
            CheckpointError: If a disk refuses it.
        """
        method, trainer = self.whole_step.method, self.trainer
        if trainer.accelerator.num_processes > 1:
            check_ranks_agree(
                trainer.accelerator, {f"controller state after update {update}": method.state_dict()}
            )
        for log in self.margin_logs:
            log.write(
                local if log.local else margins,
                epoch=int(trainer.state.epoch or 0),
                step=trainer.state.global_step + 1,
                update=update,
                reading={"beta": method.beta, **reading},
            )

    # ---- after it ----

    def _fingerprints(self) -> dict[str, str | None]:
        """Return hashes of the pairs and of the reference, by which later commands see whether they changed."""
        held_out, identity = self.trainer.eval_dataset, self.trainer.run_state.identity
        return {
            "train": identity["data"],
            "held_out": data_fingerprint(held_out) if hasattr(held_out, "column_names") else None,
            "reference": identity["reference"],
        }

    def write_summary(self) -> None:
        """Write the run's record to its output folder, on the main process. Collective over ranks."""
        trainer, step = self.trainer, self.whole_step
        cost = self.cost.summary()
        if not trainer.is_world_process_zero():
            return
        margin_log = next((log for log in self.margin_logs if not log.local), None)
        facts = {
            "method": step.method.summary(),
            "optimizer_steps": trainer.state.global_step,
            "pairs_seen": step.num_pairs,
            "tokens_seen": step.num_tokens,
            "controller_updates": step.num_updates,
            "pairs_per_update": self.pairs_per_update,
            "reference_computed": self.data.num_computed,
            "reference_reused": self.data.num_reused,
            "reference_seconds": self.data.reference_seconds,
            "nonfinite_margins": step.guard.num_nonfinite,
            "nonfinite_gradients": step.guard.num_bad_gradients,
            "beta_final": step.method.beta,
            "wall_seconds": time.time() - self.started,
            "num_ranks": trainer.args.world_size,
            "layout": step.policy.scorer.layout,
            "tokens_per_microbatch": step.policy.scorer.tokens_per_microbatch,
            "flush_denormal": self.flush_denormal,
            "cost": cost,
            "margins_path": str(margin_log.margins_path) if margin_log else None,
            "controller_path": str(margin_log.controller_path) if margin_log else None,
            "fingerprints": self._fingerprints(),
            "sampling": trainer.samples.summary() if trainer.samples else None,
            "keep_best": trainer.best_weights.best.summary() if trainer.best_weights else None,
        }
        write_run_summary(
            trainer.args.output_dir,
            facts,
            pairs_trained=step.num_pairs - self._num_pairs_before,
            training_seconds=self.cost.seconds,
            config=self.config or {"args": trainer.args.to_dict()},
        )
