"""How many tokens go through the model at once when nobody says: as many as pay, of those that fit.

An estimate from the model's shape and the machine's memory. It looks at memory there is, not memory that is
free: the same machine gives the same cut, and with it the same rounding, today and after a resume.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

SMALLEST_BUDGET = 256
# A CPU's matmuls are about as fast on 768 rows as on more; only memory would grow. GPUs gain longer.
LARGEST_BUDGET = {"cpu": 768, "cuda": 16_384}
# Share of the memory that parameters, their optimizer and activations may take together.
USABLE_SHARE = 0.6


class LayerVectors(NamedTuple):
    """Vectors a token that a layer keeps for backward, by their width, with half as much again for what comes
    and goes. Kept on a Llama of 30 layers of 576 and 1,536 in float32: 1.34 MB a token, 0.83 in lean layers."""

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
    parameters = list(model.parameters())
    # Weights, and for each trained one a gradient and Adam's two averages in float32.
    fixed = sum(p.numel() * (p.element_size() + (12 if p.requires_grad else 0)) for p in parameters)
    fitting = int((USABLE_SHARE * memory - fixed) / activation_bytes(model, recomputes=recomputes, lean=lean))
    bounded = max(SMALLEST_BUDGET, min(fitting, LARGEST_BUDGET.get(device.type, LARGEST_BUDGET["cpu"])))
    return bounded - bounded % SMALLEST_BUDGET


def activation_bytes(model: Any, *, recomputes: bool = False, lean: bool = False) -> int:
    """Return the estimated bytes that one token's activations take between forward and backward."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    vectors = LEAN if lean else EAGER
    layer = vectors.hidden * hidden + vectors.inner * int(inner if isinstance(inner, int) else max(inner))
    layers = config.num_hidden_layers
    kept = layer + layers * hidden if recomputes else layers * layer
    return int(kept * torch.finfo(model.dtype).bits // 8)


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
