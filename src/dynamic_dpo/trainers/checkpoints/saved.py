"""The check of a saved model: it counts as saved once its files, read back, hold the values in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dynamic_dpo.errors import CheckpointError


def check_saved_weights(folder: str | Path, model: Any) -> int:
    """Read a saved model's files back and compare every value with the model in memory.

    Args:
        folder: Where ``save_pretrained`` wrote ``*.safetensors``.
        model: The model that was saved, with adapters or without, not sharded.

    Returns:
        The number of tensors compared.

    Raises:
        CheckpointError: If a file is missing or a tensor differs in shape or value.
    """
    expected = _expected_weights(model)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no model file was written to {folder}: the model is not saved")
    compared = 0
    for path in files:
        with safe_open(path, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = saved.get_tensor(name)
                ours = expected.get(name)
                if ours is None or not torch.equal(tensor, ours.detach().cpu().to(tensor.dtype)):
                    raise CheckpointError(f"{path.name} in {folder} does not hold the trained {name}")
                compared += 1
    tied = len({tensor.data_ptr() for tensor in expected.values()})
    if compared < tied:
        raise CheckpointError(f"{folder} holds {compared} tensors of the model's {tied}: it is incomplete")
    return compared


def _expected_weights(model: Any) -> dict[str, torch.Tensor]:
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
        return weights
    return dict(model.state_dict())


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

    Raises:
        CheckpointError: If what was written is not what was trained.
    """
    trainer.save_model(str(folder), _internal_call=True)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not trainer.is_fsdp_enabled:  # A sharded model's values are on no single rank.
            check_saved_weights(folder, model)
        if trainer.processing_class is not None:
            check_saved_tokenizer(folder, trainer.processing_class)
