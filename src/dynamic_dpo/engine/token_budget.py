"""How many tokens go through the model at once when nobody says: as many as pay, of those that fit.

An estimate from the model's shape and the machine's memory. It looks at memory there is, not memory that is
free: the same machine gives the same cut, and with it the same rounding, today and after a resume.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dynamic_dpo.models.settings import layer_values

SMALLEST_BUDGET = 256
# A CPU's matmuls are about as fast on 768 rows as on more; only memory would grow. GPUs gain longer.
LARGEST_BUDGET = {"cpu": 768, "cuda": 16_384}
# Share of the memory that parameters, their optimizer and activations may take together.
USABLE_SHARE = 0.6


class LayerVectors(NamedTuple):
    """Vectors of the two widths in a layer: how long they are, or how many a token keeps for backward.

    Numbers hold half as much again for what comes and goes. Kept on a Llama of 30 layers of 576 and 1,536 in float32:
    1.34 MB a token, 0.83 in lean layers.
    """

    hidden: int
    inner: int


EAGER, LEAN = LayerVectors(16, 5), LayerVectors(10, 3)


def default_token_budget(
    model: Any, *, recomputes: bool = False, lean: bool = False, memory: int | None = None
) -> int:
    """Return the token budget of a micro-batch for training ``model`` where it lies.

    Args:
        model: A causal language model of transformers.
        recomputes: Whether activations are recomputed in backward, so that one layer's are kept at a time.
        lean: Whether its layers are those of `layers`.
        memory: Bytes there are; by default those of the model's device.

    Returns:
        Tokens, a multiple of 256.
    """
    device = model.device
    if memory is None:
        memory = device_memory(device)
    fixed = sum(map(_held_bytes, model.parameters()))
    fitting = int((USABLE_SHARE * memory - fixed) / activation_bytes(model, recomputes=recomputes, lean=lean))
    bounded = max(SMALLEST_BUDGET, min(fitting, LARGEST_BUDGET.get(device.type, LARGEST_BUDGET["cpu"])))
    return bounded - bounded % SMALLEST_BUDGET


def _held_bytes(parameter: torch.Tensor) -> int:
    """Return the bytes of a weight here, and where it is trained of its gradient and Adam's averages in float32."""
    # A sharded weight counts the elements of all ranks; what lies here is its shard.
    local = getattr(parameter, "_local_tensor", parameter)
    return local.numel() * (local.element_size() + (12 if parameter.requires_grad else 0))


def activation_bytes(model: Any, *, recomputes: bool = False, lean: bool = False) -> int:
    """Return the estimated bytes that one token's activations take between forward and backward."""
    config = model.config.get_text_config()
    widths, vectors = layer_widths(config), LEAN if lean else EAGER
    layer = vectors.hidden * widths.hidden + vectors.inner * widths.inner
    layers = config.num_hidden_layers
    kept = layer + layers * widths.hidden if recomputes else layers * layer
    return int(kept * torch.finfo(model.dtype).bits // 8)


def layer_widths(config: Any) -> LayerVectors:
    """Return the widths of a layer's vectors: along the residual stream, and inside the feed-forward block.

    Attention heads that are wider together than the residual stream count in its place, and the experts that a token
    passes count together.

    Args:
        config: The text part of a model's configuration.
    """

    def size(*names: str) -> int:
        values = (value for name in names for value in [_largest(layer_values(config, name))] if value)
        return next(values, 0)

    hidden = size("hidden_size")
    dense = size("intermediate_size") or 4 * hidden
    heads = size("num_attention_heads") * size("head_dim")
    inner = dense
    if size("num_local_experts", "num_experts", "n_routed_experts") > 1:
        expert = size("moe_intermediate_size") or dense
        shared = size("shared_expert_intermediate_size") or size("n_shared_experts") * expert
        inner = (size("num_experts_per_tok") or 1) * expert + shared
    return LayerVectors(max(hidden, heads), inner)


def _largest(values: list[Any]) -> int:
    # Some settings are a number for every layer.
    return max((int(value if isinstance(value, int) else max(value)) for value in values if value), default=0)


def device_memory(device: torch.device) -> int:
    """Return the bytes of memory that a process on ``device`` may count on."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total, *_container_limits()]
    return min(limits) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _container_limits() -> list[int]:
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return limits
