"""A reference that follows the policy: moved after every so many steps, and kept in every checkpoint.

Nothing can be known of it beforehand, so that it is scored beside the policy in every micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.methods.objective.reference_sync import ReferenceSync
from dynamic_dpo.runs.files import REFERENCE_WEIGHTS
from dynamic_dpo.trainers.checkpoints.saved import gathered_weights
from dynamic_dpo.trainers.checkpoints.whole import clear_disk_errors
from dynamic_dpo.trainers.policy import PolicyAndReference


def sync_of(args: Any) -> ReferenceSync:
    """Return what a ``trl.DPOConfig`` says of the reference; it stays under plain training arguments.

    Raises:
        ConfigError: If a setting is out of range, or the reference is to move and be scored beforehand.
    """
    if not getattr(args, "sync_ref_model", False):
        return ReferenceSync()
    if getattr(args, "precompute_ref_log_probs", False):
        raise ConfigError(
            "training argument sync_ref_model=True: a reference that moves cannot be scored before training; leave "
            "out precompute_ref_log_probs=True or sync_ref_model"
        )
    return ReferenceSync(args.ref_model_sync_steps, args.ref_model_mixup_alpha)


class MovingReference(TrainerCallback):  # type: ignore[misc]
    """Moves the reference towards the policy after every `ReferenceSync.steps` steps.

    Args:
        policy: Holds both models.
        sync: How often, and how far.
    """

    def __init__(self, policy: PolicyAndReference, sync: ReferenceSync) -> None:
        self.policy = policy
        self.sync = sync

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the reference after a step whose number is due; evaluation and checkpoints come after it."""
        if self.sync.steps and state.global_step % self.sync.steps == 0:
            self.policy.move_reference(self.sync.mixup_alpha)

    def save(self, folder: Path, accelerator: Any) -> None:
        """Write the reference's weights into a checkpoint. Collective over ranks where they are sharded."""
        model = self.policy.reference_model
        if self.policy.is_sharded:
            weights = gathered_weights(model)
        else:
            weights = {name: weight.detach() for name, weight in model.named_parameters()}
        if not accelerator.is_main_process:
            return
        path = folder / REFERENCE_WEIGHTS
        with clear_disk_errors(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            names = {name for name, _ in model.named_parameters()}
            save_file({name: weights[name].contiguous().cpu() for name in sorted(names)}, path)

    def load(self, folder: Path) -> None:
        """Put the reference's weights back. Collective over ranks where they are sharded.

        Raises:
            CheckpointError: If they are missing or another model's.
        """
        path = folder / REFERENCE_WEIGHTS
        model = self.policy.reference_model
        try:
            with safe_open(path, framework="pt") as saved:
                weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): the reference that had followed the policy is in it; resume from "
                "another checkpoint"
            ) from error
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        if {name: weight.shape for name, weight in weights.items()} != shapes:
            raise CheckpointError(f"{path} holds another model's weights: resume from another checkpoint")
        if self.policy.is_sharded:
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, weights, options=options)
            return
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(weights[name])
