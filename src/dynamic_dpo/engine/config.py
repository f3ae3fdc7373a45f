"""Settings of the engine: layout, memory, checks. None of them changes what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.utils.settings import check_settings, documented, setting


@documented()
@dataclass(frozen=True)
class EngineConfig:
    """How pairs meet the model: changes speed and memory, never the mathematics."""

    layout: Literal["auto", "packed", "shared", "plain"] = setting(
        "auto",
        "All pairs in one row without padding (packed), a padded row per pair with a shared prompt (shared), two "
        "padded rows per pair (plain), or the first of these that the model allows (auto).",
        key="engine.layout",
    )
    tokens_per_microbatch: int | None = setting(
        None,
        "Most tokens, padding included, that go through the model at once; null: chosen from the memory there is.",
        key="engine.tokens_per_microbatch",
        ge=1,
    )
    head_chunk: int = setting(
        256,
        "Completion positions per chunk of the output head; less is less memory.",
        key="engine.head_chunk",
        ge=1,
    )
    lean_layers: bool = setting(
        True,
        "Llama-shaped models: norms and gated blocks keep less for the backward pass; less memory, no more time.",
        key="engine.lean_layers",
    )
    offload_activations: bool = setting(
        False,
        "Keep activations of 1 MiB and more in the host's memory until the backward pass; needs CUDA, takes time.",
        key="engine.offload_activations",
    )
    self_check: bool = setting(
        True,
        "Score a few pairs in both layouts at the start and stop if they differ.",
        key="engine.self_check",
    )
    reference_dir: str | None = setting(
        None,
        "Folder of stored reference log-probabilities, shared by runs; null: the user's cache.",
        key="engine.reference_dir",
    )

    def __post_init__(self) -> None:
        check_settings(self)
