"""Attention over packed rows: every prompt with its completions by itself, no padding, nothing masked away.

All prompts of a micro-batch lie behind each other in one row, each followed by its completions, so that a model's
linear layers see needed tokens only. In attention each is causal triangles (prompt and first completion; every
further completion) and rectangles (a further completion on the prompt); a further completion's two parts are merged
by their log-sum-exp. What is attended to, and why: `rows`.

The identity behind the merge is that of FlashAttention's split along keys (Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dynamic_dpo.engine.rows import PromptSpan

# The implementation's name in transformers' tables; without spans it is `sdpa` in every respect.
PACKED_ATTENTION = "dynamic_dpo_packed"

_attend: Callable[..., tuple[Tensor, Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
)


class _PackedAttention(torch.autograd.Function):
    """Attention within each span; heads of keys and values may be fewer (grouped queries)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PromptSpan], scale: float | None
    ) -> Tensor:
        output = torch.empty_like(query)
        normalisers = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for span in spans:
            trunk, prompt = span.trunk, span.prompt
            output[:, :, trunk], normalisers[:, :, trunk] = _attend(
                query[:, :, trunk], key[:, :, trunk], value[:, :, trunk], 0.0, True, scale=scale
            )
            for branch in span.branches:
                states = query[:, :, branch]
                on_prompt, its_weight = _attend(
                    states, key[:, :, prompt], value[:, :, prompt], 0.0, False, scale=scale
                )
                on_itself, own_weight = _attend(
                    states, key[:, :, branch], value[:, :, branch], 0.0, True, scale=scale
                )
                total = torch.logaddexp(its_weight, own_weight)
                share = torch.exp(own_weight - total).unsqueeze(-1).to(output.dtype)
                torch.lerp(on_prompt, on_itself, share.expand_as(on_prompt), out=output[:, :, branch])
                normalisers[:, :, branch] = total
        ctx.save_for_backward(query, key, value, output, normalisers)
        ctx.spans, ctx.scale = spans, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, normalisers = ctx.saved_tensors
        (grad,) = grads
        grad_query, grad_key, grad_value = (torch.empty_like(part) for part in (query, key, value))

        def pull(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            # With the merged output and normaliser a part's backward gives its share of the whole gradient.
            return _attend_backward(
                grad[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                normalisers[:, :, queries],
                0.0,
                causal,
                scale=ctx.scale,
            )

        for span in ctx.spans:
            trunk, prompt = span.trunk, span.prompt
            grad_query[:, :, trunk], grad_key[:, :, trunk], grad_value[:, :, trunk] = pull(trunk, trunk, True)
            for branch in span.branches:
                grad_query[:, :, branch], grad_key[:, :, branch], grad_value[:, :, branch] = pull(
                    branch, branch, True
                )
                to_query, to_key, to_value = pull(branch, prompt, False)
                grad_query[:, :, branch] += to_query
                grad_key[:, :, prompt] += to_key
                grad_value[:, :, prompt] += to_value
        return grad_query, grad_key, grad_value, None, None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[PromptSpan], *, scale: float | None = None
) -> Tensor:
    """Let every span of a packed row attend to itself: completions to their prompt, not to each other.

    Args:
        query: Shape [1, H, T, D], on the CPU.
        key: Shape [1, G, T, D], G a divisor of H.
        value: Shape [1, G, T, D].
        spans: The prompts with their completions; together they cover all T positions.
        scale: Factor on the scores; by default one over the root of D.

    Returns:
        The attention's output. Shape [1, H, T, D].
    """
    apply: Callable[..., Tensor] = _PackedAttention.apply
    return apply(query, key, value, spans, scale)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    spans: Sequence[PromptSpan] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Answer a transformers attention layer: packed where ``spans`` came with the call, else as ``sdpa``."""
    if spans is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    if options.get("dropout"):
        raise ValueError("packed attention has no dropout; set attention_dropout to 0")
    # Under autocast rotary embeddings leave queries and keys in float32; values are in the type of the matmuls.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu":
        output = packed_attention(query, key, value, spans, scale=options.get("scaling"))
        return output.transpose(1, 2), None
    from dynamic_dpo.engine.flex import flex_packed_attention

    return flex_packed_attention(query, key, value, spans, scale=options.get("scaling")), None


AttentionInterface.register(PACKED_ATTENTION, _attention_forward)
# Calls without spans need the masks they would get under sdpa.
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
