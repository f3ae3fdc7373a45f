"""What a preference run keeps in its checkpoints, and how it goes on from one.

The trainer that mixes this in owns method, step, guard and margin logs; here their states are gathered over ranks,
compared with the run that resumes, and put back where the Hugging Face trainer would forget them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError, RunStopped
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.runs.margin_log import MarginLog
from dynamic_dpo.trainers.arguments import StepShape
from dynamic_dpo.trainers.checkpoints.identity import (
    check_same_run,
    data_fingerprint,
    identity_hash,
    identity_of,
)
from dynamic_dpo.trainers.checkpoints.saved import load_controller_state, save_controller_state
from dynamic_dpo.trainers.checkpoints.stopping import StopsWhenAsked
from dynamic_dpo.trainers.checkpoints.whole import WholeCheckpoints
from dynamic_dpo.trainers.guards import MarginGuard
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.whole_step import WholeStep

logger = logging.getLogger("dynamic_dpo")

STATE_VERSION = 2
# Of an adapter's configuration: where it came from, not what it is.
_ADAPTER_PROVENANCE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "runtime_config",
}


class ResumableRun(StopsWhenAsked, WholeCheckpoints):
    """Mixed into the preference trainer: its checkpoints hold the whole run, and a signal ends in one."""

    train_dataset: Any
    method: PreferenceMethod
    policy: PolicyAndReference
    whole_step: WholeStep
    guard: MarginGuard
    margin_logs: list[MarginLog]
    step_shape: StepShape
    pairs_per_update: int
    control: Any
    _identity: dict[str, Any] | None = None
    _restored: dict[str, Any] | None = None
    _num_pairs_before = 0
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides this run's numbers; see `run_identity`."""
        if self._identity is None:
            adapters = getattr(self.policy.model, "peft_config", {})
            facts = {
                "data": data_fingerprint(self.train_dataset),
                "reference": self.policy.fingerprint if self.method.needs.reference else None,
                "dtype": str(next(self.policy.model.parameters()).dtype),
                "mixed_precision": self.accelerator.mixed_precision,
                "dropout": max(
                    (
                        module.p
                        for module in self.policy.model.modules()
                        if isinstance(module, torch.nn.Dropout)
                    ),
                    default=0.0,
                ),
                "adapter": {
                    key: value
                    for adapter in adapters.values()
                    for key, value in adapter.to_dict().items()
                    if key not in _ADAPTER_PROVENANCE
                },
            }
            self._identity = identity_of(
                args=self.args,
                method=self.method,
                pairs_per_step=self.step_shape.pairs * self.args.world_size,
                pairs_per_update=self.pairs_per_update,
                facts=facts,
            )
        return self._identity

    # ---- saving ----

    def write_into_checkpoint(self, folder: Path) -> None:
        """Write the controller's state and what else the Hugging Face trainer does not keep."""
        positions = [log.sync() for log in self.margin_logs]
        sums = self.whole_step.metrics.state_dict(self.accelerator)
        losses = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()
        if not self.args.should_save:
            return
        state = {
            "version": STATE_VERSION,
            "global_step": self.state.global_step,
            "num_updates": self.whole_step.num_updates,
            "num_pairs_seen": self.whole_step.num_pairs,
            "num_ranks": self.args.world_size,
            "guard": self.guard.state_dict(),
            "method": self.method.state_dict(),
            # Losses and metrics since the last log entry, or the first entry after a resume would be another.
            "log": {
                "loss_sums": [str(loss) if loss != loss else loss for loss in losses],
                "steps": self.state.global_step - self._globalstep_last_logged,
                "metrics": sums,
                "evaluation_pending": self.evaluation_pending,
            },
            "margin_log": positions[0] if positions else None,
            "identity": self.identity,
            "identity_sha256": identity_hash(self.identity),
        }
        save_controller_state(folder, state)

    # ---- resuming ----

    def check_resumable(self, checkpoint: str, *, allow_changes: bool) -> None:
        """Compare the run that made a checkpoint with this one.

        Raises:
            CheckpointError: If the state cannot be read, or settings or data differ and ``allow_changes`` is false.
        """
        state = load_controller_state(checkpoint)
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"the controller state in {checkpoint} has version {state.get('version')!r}, this program reads "
                f"{STATE_VERSION}: resume with the release that wrote it, or start a new run"
            )
        try:
            check_same_run(state["identity"], self.identity)
        except CheckpointError as error:
            if not allow_changes:
                raise
            logger.warning("resume_changed=true: going on although %s", error)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_controller_state(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.method.load_state_dict(state["method"])
        self.whole_step.num_updates = int(state["num_updates"])
        self.whole_step.num_pairs = self._num_pairs_before = int(state["num_pairs_seen"])
        self.guard.load_state_dict(state["guard"])
        for log in self.margin_logs:
            log.resume_at(self.whole_step.num_updates)
        self._restored = state["log"]

    def restore_log_sums(self) -> None:
        """Put back what was gathered since the last log entry, once the parent has emptied its sums."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        self.whole_step.metrics.load_state_dict(restored["metrics"], self.accelerator)
        losses = [float(loss) for loss in restored["loss_sums"]]
        same_ranks = len(losses) == self.accelerator.num_processes
        mean = sum(losses) / len(losses)
        self._tr_loss += losses[self.accelerator.process_index] if same_ranks else mean
        # The parent reports the mean loss of this call's steps: those before it count only in the next entry.
        self._total_loss_scalar -= mean
        self._globalstep_last_logged -= int(restored["steps"])
        if restored["evaluation_pending"]:
            # The signal left no time for it; the uninterrupted run would have made it here.
            metrics = self._evaluate(None, None)  # type: ignore[attr-defined]
            self._determine_best_metric(metrics=metrics, trial=None)  # type: ignore[attr-defined]

    def raise_if_stopped(self) -> None:
        """Raise `RunStopped` if the method has asked for the end, or `Interrupted` if a signal has."""
        if reason := self.method.stop_reason:
            raise RunStopped(
                f"{reason}. A checkpoint of step {self.state.global_step} is saved; resuming goes on from it"
            )
        super().raise_if_stopped()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if reason := self.method.stop_reason:
            logger.warning("the run saves and ends here: %s", reason)
            self.control.should_save = self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(*args, **kwargs)


class RestoreLogSums(TrainerCallback):  # type: ignore[misc]
    """Calls `ResumableRun.restore_log_sums` at the one moment between the parent's reset and the first step."""

    def __init__(self, run: ResumableRun) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore."""
        self.run.restore_log_sums()
