"""Saving a trained model, sharded or not, and the check of it: it counts as saved once its files, read back, hold the
values that were trained.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.trainers.checkpoints.whole import clear_disk_errors
from dynamic_dpo.trainers.ranks import clear_rank_errors, on_main_process


def gathered_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a model that FSDP2 shards, whole, in the main process's memory. Collective over ranks.

    One tensor at a time is gathered, so that no other rank ever holds more than its shard and one tensor.

    Args:
        model: The model; with adapters, the trained parameters alone are gathered.

    Returns:
        Tensors by the model's names, in the dtype they are trained in; nothing on other ranks.
    """
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=hasattr(model, "peft_config")
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = first.setdefault(id(parameter), name)
        if name in weights and source in weights:
            # Gathered twice, tied weights would be two: only one of them is to be written.
            weights[name] = weights[source]
    return weights


def write_settings(folder: str | Path, model: Any, tokenizer: Any) -> None:
    """Write all of a model but its weights: configuration, generation settings, tokenizer and template.

    With it, the shards of a checkpoint can be made a model without the run that wrote them.

    Args:
        folder: A checkpoint's folder.
        model: The model, with adapters or without.
        tokenizer: The tokenizer, or ``None``.
    """
    adapters = getattr(model, "peft_config", {})
    for adapter in adapters.values():
        adapter = copy.copy(adapter)
        adapter.inference_mode = True
        adapter.save_pretrained(str(folder))
    if not adapters:
        config = copy.deepcopy(model.config)
        # FSDP2 makes a class of its own of every model's.
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.dtype = str(model.dtype).removeprefix("torch.")
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def check_saved_weights(
    folder: str | Path, model: Any, weights: dict[str, torch.Tensor] | None = None
) -> int:
    """Read a saved model's files back and compare every value with the one that was trained.

    Args:
        folder: Where ``save_pretrained`` wrote ``*.safetensors``.
        model: The model that was saved, with adapters or without.
        weights: Its weights by name where the model holds only shards of them, as `gathered_weights` returns them.

    Returns:
        The number of tensors compared.

    Raises:
        CheckpointError: If a file is missing or a tensor differs in shape, type or value.
    """
    expected = _as_saved(model, weights)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no model file was written to {folder}: the model is not saved")
    compared = 0
    for path in files:
        with safe_open(path, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = saved.get_tensor(name)
                ours = expected.get(name)
                if ours is None or tensor.dtype != ours.dtype or not torch.equal(tensor, ours.detach().cpu()):
                    raise CheckpointError(f"{path.name} in {folder} does not hold the trained {name}")
                compared += 1
    tied = len({tensor.data_ptr() for tensor in expected.values()})
    if compared < tied:
        raise CheckpointError(f"{folder} holds {compared} tensors of the model's {tied}: it is incomplete")
    return compared


def _as_saved(model: Any, weights: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return a model's weights under the names, and in the pieces, in which its files hold them."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        adapter: dict[str, torch.Tensor] = get_peft_model_state_dict(model, state_dict=weights)
        return adapter
    from transformers.core_model_loading import revert_weight_conversion

    # Experts, for one, are one tensor a layer in memory and many in the files.
    whole: dict[str, torch.Tensor] = revert_weight_conversion(
        model, model.state_dict() if weights is None else dict(weights)
    )
    return whole


def check_saved_tokenizer(folder: str | Path, tokenizer: Any) -> None:
    """Load a saved tokenizer and compare template, special tokens and the ids of a probe text.

    Raises:
        CheckpointError: If it does not behave as the one that was saved.
    """
    from transformers import AutoTokenizer

    reloaded = AutoTokenizer.from_pretrained(folder)
    probe = "Human: Is 1 + 1 = 2?\n\nAssistant:  Yes — ünïcödé too."
    for what, ours, theirs in (
        ("chat template", tokenizer.chat_template, reloaded.chat_template),
        ("end-of-sequence token", tokenizer.eos_token, reloaded.eos_token),
        ("tokenisation", tokenizer(probe)["input_ids"], reloaded(probe)["input_ids"]),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"the tokenizer saved in {folder} has another {what}: {theirs!r}, not {ours!r}"
            )


def save_and_check(trainer: Any, folder: str | Path) -> None:
    """Save model, tokenizer and template of a trainer to ``folder``, read them back and compare.

    Collective over ranks; the main process compares.

    Args:
        trainer: A `ResumableTrainer`.
        folder: Where to.

    Raises:
        CheckpointError: On every rank, if what was written is not what was trained, or a disk refuses it.
    """
    with clear_rank_errors(), clear_disk_errors(Path(folder)):
        trainer.save_model(str(folder), _internal_call=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = gathered_weights(model) if trainer.is_fsdp_enabled else None

    def check() -> None:
        check_saved_weights(folder, model, weights)
        if trainer.processing_class is not None:
            check_saved_tokenizer(folder, trainer.processing_class)

    with clear_rank_errors():
        on_main_process(trainer.accelerator, check)
