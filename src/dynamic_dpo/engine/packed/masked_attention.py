"""Attention under an ordinary mask, with capped scores and sinks: what `sdpa` has no place for.

Models that need either compute it by matrix products of their own (``eager``). Once their attention is packed
attention they still have to answer calls without spans: generation, plain rows, other people's evaluations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop_out


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention with all scores at once.

    Args:
        query: Shape [B, H, Q, D].
        key: Shape [B, G, K, D], G a divisor of H.
        value: Shape [B, G, K, Dv].
        mask: Boolean, true where a query sees a key, or added to the scores; broadcasts to [B, 1, Q, K].
        causal: Whether without a mask a query sees the keys up to its own number, rather than all.
        scale: Factor on the scores; by default one over the root of D.
        softcap: Scores are bent below this: softcap · tanh(score / softcap).
        sinks: A logit for each head that takes part in its softmax with a value of zero. Shape [H].
        dropout: Share of the weights to drop.

    Returns:
        The output. Shape [B, H, Q, Dv].
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(shared, dim=1) if shared > 1 else part for part in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        # The lowest number, not minus infinity: a row of padding may see nothing at all.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        at_the_end = sinks[None, :, None, None].to(scores.dtype).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, at_the_end], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return drop_out(weights[..., : key.shape[2]], dropout) @ value
