"""The sections that say how it is computed: adapters, engine and rollouts.

The engine's own settings are stated in `EngineConfig`. Errors, ``--help`` and the documentation follow.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from dynamic_dpo.config.base import Section, refuse
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


class RolloutSection(Section):
    """Sampling responses and judging them into new pairs. Checked, but run by no command of this version."""

    engine: Literal["transformers", "vllm"] = Field(default="transformers", description="What samples.")
    model_name: str | None = Field(default=None, description="Model that responds; null: policy_name.")
    output_dir: str = Field(
        default="runs/rollout", min_length=1, description="Folder for responses and pairs."
    )
    batch_size: int = Field(default=16, ge=1, description="Prompts sampled at once.")
    responses_per_prompt: int = Field(default=4, ge=2, description="Responses sampled for each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus: probability mass sampled from.")
    min_new_tokens: int = Field(default=1, ge=0, description="Fewest tokens of a response.")
    max_new_tokens: int = Field(default=256, ge=1, description="Most tokens of a response.")
    limit: int | None = Field(default=None, ge=1, description="Number of prompts; null: all.")
    seed: int = Field(default=42, ge=0, description="Seed of the sampling.")
    judge: Literal["reward_model", "gpt4_oracle"] = Field(
        default="reward_model", description="Who ranks the responses of a prompt."
    )
    reward_model: str | None = Field(default=None, description="Reward model, with judge reward_model.")
    reward_batch_size: int = Field(default=16, ge=1, description="Responses scored at once.")

    @field_validator("max_new_tokens")
    @classmethod
    def _not_below_the_fewest(cls, value: int, info: ValidationInfo) -> int:
        fewest = info.data.get("min_new_tokens")
        if fewest is not None and value < fewest:
            refuse(f"must be at least rollout.min_new_tokens ({fewest})")
        return value
