"""Settings of the engine: layout, memory, checks. None of them changes what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """How pairs meet the model.

    Attributes:
        layout: ``packed`` puts all pairs in one row without padding, ``shared`` each pair in a padded row,
            ``plain`` each answer; ``auto`` takes the first of these that the model can.
        tokens_per_microbatch: Token budget of a micro-batch, padding included; ``None`` chooses it from the memory
            there is.
        head_chunk: Completion positions whose logits exist at a time.
        lean_layers: Let norms and gated blocks of Llama-shaped models keep less for backward and compute by
            element what they did not keep.
        offload_activations: Keep what the backward pass needs in the host's memory: less of the GPU's, more time.
        self_check: Score a few pairs both ways before training and refuse to go on if they differ.
        reference_dir: Folder of the reference store; ``None`` is the user's cache folder.
    """

    layout: Literal["auto", "packed", "shared", "plain"] = "auto"
    tokens_per_microbatch: int | None = None
    head_chunk: int = 256
    lean_layers: bool = True
    offload_activations: bool = False
    self_check: bool = True
    reference_dir: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("auto", "packed", "shared", "plain"):
            raise ConfigError(f"layout must be 'auto', 'packed', 'shared' or 'plain', got {self.layout!r}")
        for key in ("tokens_per_microbatch", "head_chunk"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
