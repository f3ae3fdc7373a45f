"""Attention over packed rows on a GPU: FlexAttention with a block mask made once per micro-batch.

The mask says the same as the slices of `attention`: one's own span, not the future, and of that span the prompt
or one's own completion. Blocks that hold nothing of it are skipped by the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dynamic_dpo.engine.rows import PROMPT, PromptSpan

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def packed_mask(spans: Sequence[PromptSpan], device: torch.device | str) -> MaskFunction:
    """Return the mask function of FlexAttention for packed rows.

    Args:
        spans: The prompts of the row with their completions.
        device: Where the mask is asked.

    Returns:
        ``mask(batch, head, query, key)``: whether position ``query`` attends to position ``key``.
    """
    owners, segments = [], []
    for number, span in enumerate(spans):
        owners += [number] * (span.end - span.start)
        segments += [PROMPT] * (span.prompt_end - span.start)
        starts = (span.prompt_end, *span.ends)
        for completion, (start, end) in enumerate(zip(starts, span.ends, strict=False), start=1):
            segments += [completion] * (end - start)
    owner = torch.tensor(owners, dtype=torch.int32, device=device)
    segment = torch.tensor(segments, dtype=torch.int32, device=device)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_span = owner[query] == owner[key]
        visible = (segment[key] == PROMPT) | (segment[key] == segment[query])
        return same_span & visible & (query >= key)

    return mask


@lru_cache(maxsize=2)
def _block_mask(spans: tuple[PromptSpan, ...], device: torch.device) -> BlockMask:
    # Every layer of a micro-batch asks for the same mask; the next micro-batch for another.
    length = spans[-1].end
    return create_block_mask(packed_mask(spans, device), None, None, length, length, device=device)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    # Lengths differ from one micro-batch to the next: one kernel for all of them.
    return torch.compile(flex_attention, dynamic=True)


def flex_packed_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PromptSpan], *, scale: float | None = None
) -> Tensor:
    """Return what `attention.packed_attention` returns, transposed, through FlexAttention.

    Args:
        query: Shape [1, H, T, D]; on a CPU it runs uncompiled, for tests.
        key: Shape [1, G, T, D].
        value: Shape [1, G, T, D].
        spans: The prompts with their completions; together they cover all T positions.
        scale: Factor on the scores; by default one over the root of D.

    Returns:
        Shape [1, T, H, D].
    """
    attend = _compiled() if query.device.type == "cuda" else flex_attention
    mask = _block_mask(tuple(spans), query.device)
    grouped = query.shape[1] != key.shape[1]
    output: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous()
