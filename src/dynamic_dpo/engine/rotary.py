"""Rotary embeddings that go by the longest sequence of a batch, made to go by each row's own length.

Dynamic NTK scaling and LongRoPE (Ding et al. 2024, arXiv:2402.13753) use other frequencies for sequences beyond the
length the model was first trained on, and transformers asks for that length of the whole batch: a row's numbers would
depend on the rows beside it, with dynamic scaling even on the batch before. Here each row is embedded by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def _lengths(module: Any) -> Iterator[int]:
    """Yield the lengths up to which the frequencies of a rotary embedding are fixed; none for ordinary ones."""
    kinds = getattr(module, "rope_type", None)
    if kinds is None or not hasattr(module, "config"):
        return
    for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
        if kind == "longrope":
            settings = module.config.rope_parameters
            settings = settings if layer_type is None else settings[layer_type]
            yield int(settings["original_max_position_embeddings"])
        elif "dynamic" in str(kind):
            yield int(module.original_max_seq_len)


def fixed_length(model: nn.Module) -> int | None:
    """Return the tokens up to which a sequence's positions are embedded alike whatever else is in the batch.

    ``None`` where that holds for any length: no rotary embedding of the model is dynamic.
    """
    return min((length for module in model.modules() for length in _lengths(module)), default=None)


def embed_rows_alone(model: nn.Module) -> None:
    """Let every dynamic rotary embedding of ``model`` embed each row of positions by itself.

    Only their ``forward`` is replaced, on the instance.
    """
    for module in model.modules():
        if any(True for _ in _lengths(module)):
            module.forward = MethodType(_forward, module)


def _forward(self: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    def alone(positions: Tensor) -> tuple[Tensor, Tensor]:
        _forget_lengths(self)
        cos, sin = type(self).forward(self, x, positions, *args, **kwargs)
        return cos, sin

    # Rows are the second last dimension; some models have a dimension for the axes of pictures before it.
    parts = [alone(row) for row in torch.tensor_split(position_ids, position_ids.shape[-2], dim=-2)]
    cos, sin = (torch.cat(halves, dim=-3) for halves in zip(*parts, strict=True))
    return cos, sin


def _forget_lengths(module: Any) -> None:
    """Put a dynamic embedding back to where it stood before it saw a sequence."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if not name.endswith("original_inv_freq"):
            continue
        current = name.replace("original_", "")
        setattr(module, current, buffer.to(getattr(module, current).device, copy=True))
        length = f"{name.removesuffix('original_inv_freq')}max_seq_len_cached"
        if hasattr(module, length):
            setattr(module, length, module.original_max_seq_len)
