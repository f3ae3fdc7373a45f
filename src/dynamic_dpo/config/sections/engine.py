"""The sections that say how it is computed: adapters and engine.

The engine's own settings are stated in `EngineConfig`. Errors, ``--help-all`` and the documentation follow.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynamic_dpo.config.base import Section
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.engine.config import EngineConfig


class PeftSection(Section):
    """Low-rank adapters, the model without them being the reference; null (the default): full fine-tuning."""

    r: int = Field(default=16, ge=1, description="Rank of the adapters.")
    lora_alpha: int = Field(default=32, ge=1, description="Scale of the adapters, divided by r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    target_modules: str | list[str] | None = Field(
        default="all-linear",
        description="Modules that get adapters: all-linear, names, or null for peft's choice.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="Which biases are trained.")
    load_in_4bit: bool = Field(
        default=False, description="Keep the base model in 4-bit NF4 (QLoRA); needs CUDA and bitsandbytes."
    )


class EngineSection(settings_section("engine", EngineConfig)):  # type: ignore[misc]
    """How pairs meet the model: changes speed and memory, never the mathematics."""

    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more time."
    )
    attn_implementation: str | None = Field(
        default=None, description="Attention kernel, e.g. eager or sdpa; null: the model's default."
    )
    disable_dropout: bool = Field(
        default=True, description="Switch off the policy's dropout and the noise of its routers."
    )
    num_proc: int | None = Field(
        default=None, ge=1, description="Worker processes of the tokenisation; null: chosen by the program."
    )
