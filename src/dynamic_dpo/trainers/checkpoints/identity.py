"""What makes a run the run it is: the settings and data that decide its numbers, compared when it is resumed.

Where things are written, how often they are logged and how a step is cut to fit memory are no part of it. A method's
settings are its frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.methods.base import Needs, PreferenceMethod
from dynamic_dpo.trainers.reference_pass import MASKS

# Training arguments that change what is computed. Everything else is bookkeeping or the engine's.
ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "tf32",
    "seed",
    "data_seed",
    "full_determinism",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "ignore_data_skip",
)
# A schedule of this kind does not ask how long the run is: such a run may be made longer.
OPEN_ENDED = ("constant", "constant_with_warmup")
# A method's settings that begin so decide what is reported of it.
REPORTS_ONLY = ("monitor",)


def identity_of(
    *,
    args: Any,
    method: PreferenceMethod,
    pairs_per_step: int,
    pairs_per_update: int,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what decides a run's numbers, as JSON types, one flat entry a setting.

    Args:
        args: The training arguments.
        method: The preference method.
        pairs_per_step: Pairs of an optimizer step over all ranks.
        pairs_per_update: Pairs of a controller update over all ranks.
        facts: What the trainer adds: data, reference, adapter.
    """
    found = {name: getattr(args, name) for name in ARGUMENTS if hasattr(args, name)}
    lr_schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if lr_schedule not in OPEN_ENDED:
        found |= {"num_train_epochs": args.num_train_epochs, "max_steps": args.max_steps}
    found |= {"pairs_per_step": pairs_per_step, "pairs_per_update": pairs_per_update, **facts}
    found |= _settings(method, "method")
    return {key: _plain(value) for key, value in sorted(found.items())}


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity's canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting in which two identities differ.

    Example:
        >>> differences({"seed": 1, "bf16": False}, {"seed": 2, "bf16": False})
        ['seed: the checkpoint has 1, this run has 2']
    """
    missing = object()

    def show(value: Any) -> str:
        return "nothing" if value is missing else json.dumps(value)

    return [
        f"{key}: the checkpoint has {show(saved.get(key, missing))}, this run has {show(ours.get(key, missing))}"
        for key in sorted({*saved, *ours})
        if saved.get(key, missing) != ours.get(key, missing)
    ]


def check_same_run(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` with every difference between the run that was saved and this one."""
    if lines := differences(saved, ours):
        raise CheckpointError(
            "the checkpoint was made with other settings or data, and going on would mix two experiments:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nResume with the settings of the checkpoint, start a new run, or, to mix them on purpose, set "
            "resume_changed=true"
        )


def data_fingerprint(dataset: Any) -> str:
    """Return a hash of a tokenised data set: every token of every pair, which of them count, and their order."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    columns = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format("arrow")
    for table in columns.iter(batch_size=4096):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            column = table.column(name).combine_chunks()
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            tokens = column.flatten().to_numpy(zero_copy_only=False)
            digest.update(lengths.astype(np.int64).tobytes())
            digest.update(tokens.astype(np.int64).tobytes())
    masks = [name for name in MASKS if name in dataset.column_names]
    for table in dataset.select_columns(masks).with_format("arrow").iter(batch_size=4096) if masks else ():
        for name in masks:
            column = table.column(name).combine_chunks()
            lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
            digest.update(lengths.astype(np.int64).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).astype(np.int8).tobytes())
    return digest.hexdigest()


def _settings(method: PreferenceMethod, prefix: str) -> dict[str, Any]:
    """Return a method's fixed settings: its name, its scope, its dataclasses, and those of losses it holds."""
    found: dict[str, Any] = {f"{prefix}.name": method.name, f"{prefix}.scope": method.scope}
    for name, value in vars(method).items():
        if isinstance(value, PreferenceMethod):
            found |= _settings(value, f"{prefix}.{name}")
        elif isinstance(value, tuple) and any(isinstance(item, PreferenceMethod) for item in value):
            for number, item in enumerate(value):
                found |= _settings(item, f"{prefix}.{name}.{number}")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type | Needs):
            # By the field's own name: where a method keeps its settings is no business of the user's.
            found |= {
                f"{prefix}.{field.name}": getattr(value, field.name)
                for field in dataclasses.fields(value)
                if not field.name.startswith(REPORTS_ONLY)
            }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
