"""What a preference run adds to the Hugging Face trainer's checkpoints, and how it goes on from one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.models.dropout import largest_dropout
from dynamic_dpo.runs.files import CONTROLLER_STATE
from dynamic_dpo.runs.margin_log import MarginLog
from dynamic_dpo.trainers.checkpoints.identity import (
    check_same_run,
    data_fingerprint,
    identity_hash,
    identity_of,
)
from dynamic_dpo.trainers.whole_step import WholeStep
from dynamic_dpo.utils.files import write_json

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


class RunState(TrainerCallback):  # type: ignore[misc]
    """The state of a preference run: gathered over ranks, compared with the run that resumes, and put back.

    As a callback it puts back what the Hugging Face trainer empties when training begins.

    Args:
        trainer: The run's trainer, a `ResumableTrainer`.
        whole_step: The run's optimizer step, with the method, the guard and the counts.
        margin_logs: This rank's margin logs.
        pairs_per_step: Pairs of an optimizer step over all ranks.
        pairs_per_update: Pairs of a controller update over all ranks.
    """

    def __init__(
        self,
        trainer: Any,
        whole_step: WholeStep,
        *,
        margin_logs: Sequence[MarginLog],
        pairs_per_step: int,
        pairs_per_update: int,
    ) -> None:
        self.trainer = trainer
        self.whole_step = whole_step
        self.margin_logs = margin_logs
        self.pairs_per_step = pairs_per_step
        self.pairs_per_update = pairs_per_update
        self._metrics_since_last_entry: dict[str, Any] | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides this run's numbers; see `identity_of`."""
        method, policy = self.whole_step.method, self.whole_step.policy
        adapters = getattr(policy.model, "peft_config", {})
        facts = {
            "data": data_fingerprint(self.trainer.train_dataset),
            "reference": policy.fingerprint if method.needs.reference else None,
            "dtype": str(next(policy.model.parameters()).dtype),
            "mixed_precision": self.trainer.accelerator.mixed_precision,
            "dropout": largest_dropout(policy.model),
            "adapter": {
                key: value
                for adapter in adapters.values()
                for key, value in adapter.to_dict().items()
                if key not in _ADAPTER_PROVENANCE
            },
        }
        if self.trainer.best_weights is not None:
            facts["keep_best"] = self.trainer.best_weights.identity
        if policy.moves_reference:
            # Checkpoints of runs whose reference stays say nothing of it.
            facts["reference_sync"] = asdict(self.trainer.reference_sync)
        return identity_of(
            args=self.trainer.args,
            method=method,
            pairs_per_step=self.pairs_per_step,
            pairs_per_update=self.pairs_per_update,
            facts=facts,
        )

    def save(self, folder: Path) -> None:
        """Write ``controller_state.json`` into a checkpoint. Collective over ranks."""
        trainer, step = self.trainer, self.whole_step
        positions = [log.sync() for log in self.margin_logs]
        sums = step.metrics.state_dict(trainer.accelerator)
        log = trainer.log_state.gather()
        if not trainer.args.should_save:
            return
        state = {
            "version": STATE_VERSION,
            "global_step": trainer.state.global_step,
            "num_updates": step.num_updates,
            "num_pairs_seen": step.num_pairs,
            "num_tokens_seen": step.num_tokens,
            "num_ranks": trainer.args.world_size,
            "guard": step.guard.state_dict(),
            "method": step.method.state_dict(),
            # Losses and metrics since the last log entry, or the first entry after a resume would be another.
            "log": {**log, "metrics": sums},
            "margin_log": positions[0] if positions else None,
            "identity": self.identity,
            "identity_sha256": identity_hash(self.identity),
        }
        if trainer.best_weights is not None:
            state["best"] = trainer.best_weights.best.state_dict()
        save_controller_state(folder, state)

    def check_resumable(self, checkpoint: str | Path, *, allow_changes: bool) -> None:
        """Compare the run that made a checkpoint with this one.

        Args:
            checkpoint: The checkpoint's folder.
            allow_changes: Whether a difference is a warning instead of an error.

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

    def restore(self, folder: Path) -> None:
        """Put back method, counts and guard, and cut the margin logs back to the checkpoint."""
        state = load_controller_state(folder)
        self.whole_step.method.load_state_dict(state["method"])
        self.whole_step.num_updates = int(state["num_updates"])
        self.whole_step.num_pairs = int(state["num_pairs_seen"])
        self.whole_step.num_tokens = int(state.get("num_tokens_seen", 0))  # Version 0.2 kept none.
        self.whole_step.guard.load_state_dict(state["guard"])
        for log in self.margin_logs:
            log.resume_at(self.whole_step.num_updates)
        self.trainer.log_state.restore(state["log"])
        if self.trainer.best_weights is not None:
            self.trainer.best_weights.read_from(folder, state.get("best"))
        self._metrics_since_last_entry = state["log"]["metrics"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back the metrics since the last log entry."""
        restored, self._metrics_since_last_entry = self._metrics_since_last_entry, None
        if restored is not None:
            self.whole_step.metrics.load_state_dict(restored, self.trainer.accelerator)


def save_controller_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Write the controller's state into a checkpoint folder."""
    path = Path(folder) / CONTROLLER_STATE
    # Not write_json alone: a NaN in the state would be a fault of ours, and must not become null in silence.
    json.dumps(state, allow_nan=False)
    write_json(path, state)


def load_controller_state(folder: str | Path) -> dict[str, Any]:
    """Read the controller's state from a checkpoint folder.

    Raises:
        CheckpointError: If it is missing or unreadable.
    """
    path = Path(folder) / CONTROLLER_STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: the checkpoint was made by another trainer or is incomplete; "
            "resume from another checkpoint or start a new run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); resume from another checkpoint") from error
    if not isinstance(state, dict) or "method" not in state:
        raise CheckpointError(f"{path} holds no controller state; resume from another checkpoint")
    return state
