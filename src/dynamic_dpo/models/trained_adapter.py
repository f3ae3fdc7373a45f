"""Adapters that are trained: a fresh one, or one from a folder, with which training goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.models.adapters import ADAPTER_FILE, ModelFiles, find_adapter, find_model, fitting
from dynamic_dpo.models.sources import file_fingerprint, load_model, resolve_model


def find_policy(name: str, *, revision: str | None = None) -> ModelFiles:
    """Find a model to train, or its reference; of a hub name without a revision nothing is fetched yet.

    Args:
        name: Hub name, folder, ``.gguf`` file, ``package:NAME``, or the folder of an adapter.
        revision: Branch, tag or commit on the hub.

    Raises:
        ConfigError: If a revision is given for a local model.
        ModelError: If there is no such file or folder, or an adapter names no base.
    """
    if revision is not None:
        return find_model(name, revision=revision, setting="model_init_kwargs['revision']")
    found = find_adapter(name)
    if found is not None:
        return found
    source = resolve_model(name)
    return ModelFiles(source, None, source)


def load_policy_files(
    files: ModelFiles, *, trained: bool = True, gradient_checkpointing: bool = False, **options: Any
) -> Any:
    """Load a model; with an adapter, its weights are the ones to train, and the base stays frozen.

    Args:
        files: From `find_policy`.
        trained: Whether the adapter is to be trained; a reference's is not.
        gradient_checkpointing: Whether activations will be recomputed.
        **options: More of ``from_pretrained`` for the model or the base; by default its weights are float32.

    Raises:
        ModelError: If it cannot be loaded, or the adapter does not fit its base.
    """
    model = load_model(files.base, **options)
    if files.adapter is None:
        return model
    peft = _peft()
    if trained:
        model = _ready_for_adapters(model, gradient_checkpointing)
    with fitting(files):
        return peft.PeftModel.from_pretrained(model, str(files.adapter), is_trainable=trained)


def add_adapter(model: Any, peft_config: Any, *, gradient_checkpointing: bool) -> Any:
    """Return a model with a fresh adapter, which alone is trained.

    Raises:
        ModelError: If peft is missing, that is no configuration of it, or the model has an adapter.
    """
    peft = _peft()
    if not isinstance(peft_config, peft.PeftConfig):
        raise ModelError(f"peft_config must be a peft configuration, got {type(peft_config).__name__}")
    if hasattr(model, "peft_config"):
        raise ModelError("the model carries an adapter already: merge it first, or leave peft_config out")
    return peft.get_peft_model(_ready_for_adapters(model, gradient_checkpointing), peft_config)


def gives_base_back(model: Any) -> bool:
    """Return whether a model with its adapters off is its base: not where adapters train the base's own biases."""
    return all(
        getattr(adapter, "bias", "none") == "none" for adapter in getattr(model, "peft_config", {}).values()
    )


def check_has_trained_weights(model: Any) -> None:
    """Raise `ModelError` if nothing of a model is trained, as of an adapter that was opened for inference."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"no weight of the {type(model).__name__} is to be trained: an adapter is opened for training by "
            "PeftModel.from_pretrained(..., is_trainable=True), or by giving its folder as the model"
        )


def policy_fingerprint(files: ModelFiles) -> str:
    """Return a SHA-256 over a model's weight files and configuration, an adapter's included.

    Raises:
        ModelError: If weight files are missing.
    """
    fingerprint = file_fingerprint(files.base)
    if files.adapter is None:
        return fingerprint
    digest = hashlib.sha256(fingerprint.encode())
    weights = sorted(files.adapter.glob("adapter_model.*"))
    if not weights:
        raise ModelError(f"the adapter {files.adapter} has no weight file adapter_model.safetensors")
    for path in (*weights, files.adapter / ADAPTER_FILE):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_section(section: dict[str, Any], adapter: Path) -> None:
    """Check that settings of an adapter are those that a given one has: others would have no effect.

    Args:
        section: What the user has set of ``peft``, by name.
        adapter: The adapter's folder.

    Raises:
        ConfigError: If one differs.
    """
    has = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8"))

    def same(name: str, value: Any) -> bool:
        found = has.get(name)
        if isinstance(value, list) and isinstance(found, list):
            return sorted(value) == sorted(found)
        return bool(value == found)

    wrong = [
        f"peft.{name} is {value!r} and the adapter has {has.get(name)!r}"
        for name, value in section.items()
        if name != "load_in_4bit" and not same(name, value)
    ]
    if wrong:
        raise ConfigError(
            f"policy_name is the adapter {adapter}, with which training goes on as it is, so that the section peft "
            f"has no effect: {'; '.join(wrong)}. Remove them, or merge the adapter first (dynamic-dpo merge "
            "--into-base)"
        )


def _ready_for_adapters(model: Any, gradient_checkpointing: bool) -> Any:
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    return model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("adapters need the peft package: pip install 'dynamic-dpo[peft]'") from error
    return peft
