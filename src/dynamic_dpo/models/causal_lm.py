"""The causal language model inside whatever was wrapped around it: adapters, data parallelism, sharding."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynamic_dpo.errors import ModelError


def inside_wrappers(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers for data parallelism, sharding and compilation, adapters included."""
    for name in ("module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return inside_wrappers(inner)
    return model


def causal_lm(model: nn.Module) -> Any:
    """Return the transformers causal language model inside adapters or parallel wrappers.

    Raises:
        ModelError: If an adapter changes the prompt instead of the layers, or there is no output head.
    """
    inner: Any = inside_wrappers(model)
    if hasattr(inner, "get_base_model"):
        if getattr(getattr(inner, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                "prompt-learning adapters (prompt tuning, prefix tuning) are not supported: "
                "use an adapter inside the layers, such as LoRA"
            )
        inner = inner.get_base_model()
    if getattr(inner, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{type(inner).__name__} has no output head: a causal language model is needed")
    return inner
