"""Settings of the engine: layout, memory, checks. None of them changes what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """How pairs meet the model.

    Attributes:
        layout: ``shared`` puts a pair in one row, ``plain`` in two; ``auto`` shares where the model can.
        tokens_per_microbatch: Budget of padded tokens in a micro-batch.
        head_chunk: Completion positions whose logits exist at a time.
        self_check: Score a few pairs both ways before training and refuse to go on if they differ.
        reference_dir: Folder of the reference store; ``None`` is the user's cache folder.
    """

    layout: Literal["auto", "shared", "plain"] = "auto"
    tokens_per_microbatch: int = 2048
    head_chunk: int = 1024
    self_check: bool = True
    reference_dir: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("auto", "shared", "plain"):
            raise ConfigError(f"layout must be 'auto', 'shared' or 'plain', got {self.layout!r}")
        for key in ("tokens_per_microbatch", "head_chunk"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")
