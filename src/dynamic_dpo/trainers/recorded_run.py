"""What a preference run writes of itself: margins, log entries, and the record that it leaves.

The trainer that mixes this in owns method, policy and loop.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.runs.margin_log import MarginLog
from dynamic_dpo.runs.summary import write_run_summary
from dynamic_dpo.trainers.guards import MarginGuard
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.ranks import check_ranks_agree
from dynamic_dpo.trainers.reference_pass import ReferencePass
from dynamic_dpo.trainers.whole_step import WholeStep


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Adds up the seconds spent inside optimizer steps: no evaluation, saving or reference pass."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock; on a GPU, once the step is really done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started


class RecordedRun:
    """Mixed into the preference trainer: what happened can be read afterwards."""

    # Of the Hugging Face trainer and of the one that mixes this in.
    args: Any
    accelerator: Any
    state: Any
    control: Any
    method: PreferenceMethod
    policy: PolicyAndReference
    guard: MarginGuard
    margin_logs: list[MarginLog]
    whole_step: WholeStep
    step_clock: StepClock
    pairs_per_update: int
    flush_denormal: bool
    run_config: dict[str, Any] | None
    is_world_process_zero: Any
    _reference: ReferencePass | None
    _wall_start: float
    _num_pairs_before: int
    _tr_loss: Tensor

    @property
    def num_updates(self) -> int:
        """Controller updates so far, those before a resume included."""
        return self.whole_step.num_updates

    @property
    def num_pairs_seen(self) -> int:
        """Pairs trained on so far over all ranks, those before a resume included."""
        return self.whole_step.num_pairs

    def _log_margins(self, margins: Tensor, local: Tensor, update: int, reading: dict[str, float]) -> None:
        if self.accelerator.num_processes > 1:
            check_ranks_agree(
                self.accelerator, {f"controller state after update {update}": self.method.state_dict()}
            )
        for log in self.margin_logs:
            log.write(
                local if log.local else margins,
                epoch=int(self.state.epoch or 0),
                step=self.state.global_step + 1,
                update=update,
                reading={"beta": self.method.beta, **reading},
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last entry to a training entry, then log it."""
        if "loss" in logs:
            logs = {**logs, "beta": self.method.beta, **self.whole_step.metrics.drain(self.accelerator)}
            if start_time is not None:
                # The loop's own entry. It empties its sum by subtracting it from itself: one NaN would stay for the
                # rest of the run, and in the checkpoint that is saved next.
                self._tr_loss.zero_()
        super().log(logs, start_time)  # type: ignore[misc]

    def _write_summary(self) -> None:
        """Write the run's record to the output folder."""
        if not self.is_world_process_zero():
            return
        margin_log = next((log for log in self.margin_logs if not log.local), None)
        facts = {
            "method": self.method.summary(),
            "optimizer_steps": self.state.global_step,
            "pairs_seen": self.num_pairs_seen,
            "controller_updates": self.num_updates,
            "pairs_per_update": self.pairs_per_update,
            "reference_computed": self._reference.num_computed if self._reference else 0,
            "reference_reused": self._reference.num_reused if self._reference else 0,
            "nonfinite_margins": self.guard.num_nonfinite,
            "nonfinite_gradients": self.guard.num_bad_gradients,
            "beta_final": self.method.beta,
            "wall_seconds": time.time() - self._wall_start,
            "num_ranks": self.args.world_size,
            "layout": self.policy.scorer.layout,
            "tokens_per_microbatch": self.policy.scorer.tokens_per_microbatch,
            "flush_denormal": self.flush_denormal,
            "margins_path": str(margin_log.margins_path) if margin_log else None,
            "controller_path": str(margin_log.controller_path) if margin_log else None,
        }
        write_run_summary(
            self.args.output_dir,
            facts,
            pairs_trained=self.num_pairs_seen - self._num_pairs_before,
            training_seconds=self.step_clock.seconds,
            config=self.run_config or {"args": self.args.to_dict()},
        )
