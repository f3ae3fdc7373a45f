"""Attention over packed rows on a CPU: every prompt with its completions by itself, nothing masked away computed.

It is computed by the pieces that `span_pieces` cuts it into; where some queries have two, their outputs are merged
by their log-sum-exp: the identity of FlashAttention's split along keys (Dao et al. 2022, arXiv:2205.14135).
Attention sinks, learned logits with a value of zero (gpt-oss; Xiao et al. 2023, arXiv:2309.17453), only enter the
normaliser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynamic_dpo.engine.packed.capped_attention import capped_attention, capped_attention_backward
from dynamic_dpo.engine.packed.span_pieces import Piece, pieces
from dynamic_dpo.engine.rows import PromptSpan

_attend: Callable[..., tuple[Tensor, Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
)

# Capped scores of all heads that exist at once: 8 MiB in float32, with which they were fastest.
_MOST_SCORES = 2**21


class _Rule(NamedTuple):
    """How scores are made and which of them count."""

    scale: float
    window: int | None
    softcap: float | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """Return the output of a piece's queries on its keys, and its normalisers."""
        states, keys, values = _part(query, [piece.queries]), _part(key, piece.keys), _part(value, piece.keys)
        visible = piece.visible(self.window, query.device)
        if self.softcap is not None and visible is not None:
            return capped_attention(states, keys, values, visible, scale=self.scale, softcap=self.softcap)
        return _attend(
            states, keys, values, 0.0, piece.causal, attn_mask=_bias(visible, query), scale=self.scale
        )

    def pull(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        normalisers: Tensor,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a piece's share of the gradients to its queries, keys and values.

        With the whole output and the whole normaliser a part's backward gives its share of the whole gradient.
        """
        grad, states, output = (_part(tensor, [piece.queries]) for tensor in (grad, query, output))
        keys, values = _part(key, piece.keys), _part(value, piece.keys)
        normalisers = normalisers[:, :, piece.queries]
        visible = piece.visible(self.window, query.device)
        saved = (grad, states, keys, values, output, normalisers)
        if self.softcap is not None and visible is not None:
            return capped_attention_backward(*saved, visible, scale=self.scale, softcap=self.softcap)
        return _attend_backward(*saved, 0.0, piece.causal, attn_mask=_bias(visible, query), scale=self.scale)


def _part(tensor: Tensor, places: Sequence[slice]) -> Tensor:
    """Return parts of a row [1, H, T, D], one behind the other."""
    parts = [tensor[:, :, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _bias(visible: Tensor | None, like: Tensor) -> Tensor | None:
    """Return 0 where a key is visible and minus infinity where not, as the kernel takes it. Shape [1, 1, Q, K]."""
    if visible is None:
        return None
    return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)[None, None]


class _PackedAttention(torch.autograd.Function):
    """Attention within each span; heads of keys and values may be fewer (grouped queries)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        spans: Sequence[PromptSpan],
        rule: _Rule,
    ) -> Tensor:
        most_scores = None if rule.softcap is None else _MOST_SCORES // query.shape[1]
        plan = list(pieces(spans, rule.window, most_scores))
        output = torch.empty_like(query)
        normalisers = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for first, *rest in plan:
            attended, total = rule.attend(query, key, value, first)
            for piece in rest:
                on_these, weight = rule.attend(query, key, value, piece)
                total = torch.logaddexp(total, weight)
                share = torch.exp(weight - total).unsqueeze(-1).to(output.dtype)
                attended = torch.lerp(attended, on_these, share.expand_as(attended))
            output[:, :, first.queries], normalisers[:, :, first.queries] = attended, total
        if sinks is not None:
            total = torch.logaddexp(normalisers, sinks[:, None].to(normalisers.dtype))
            output *= torch.exp(normalisers - total).unsqueeze(-1)
            normalisers = total
        ctx.save_for_backward(query, key, value, sinks, output, normalisers)
        ctx.plan, ctx.rule = plan, rule
        return output

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, normalisers = ctx.saved_tensors
        (grad,) = grads
        # Under a window or a cap many blocks add to one key: not in a type that rounds each of their sums.
        by_blocks = any(piece.gap is not None for some in ctx.plan for piece in some)
        make, dtype = (torch.zeros_like, normalisers.dtype) if by_blocks else (torch.empty_like, query.dtype)
        grad_query, grad_key, grad_value = (make(part, dtype=dtype) for part in (query, key, value))
        for piece in (piece for some in ctx.plan for piece in reversed(some)):
            to_query, to_key, to_value = ctx.rule.pull(grad, query, key, value, output, normalisers, piece)
            # A triangle is the first piece that meets its keys and, last of its queries' pieces, here their first.
            put = Tensor.copy_ if piece.causal else Tensor.add_
            put(grad_query[:, :, piece.queries], to_query)
            start = 0
            for place in piece.keys:
                end = start + place.stop - place.start
                put(grad_key[:, :, place], to_key[:, :, start:end])
                put(grad_value[:, :, place], to_value[:, :, start:end])
                start = end
        grad_sinks = None
        if sinks is not None:
            # A sink's weight times what it would have put in the output's place, which is nothing.
            weights = torch.exp(sinks[:, None].to(normalisers.dtype) - normalisers)
            grad_sinks = -(weights * (grad * output).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return (
            grad_query.to(query.dtype),
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            grad_sinks,
            None,
            None,
        )


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PromptSpan],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Let every span of a packed row attend to itself: completions to their prompt, not to each other.

    Args:
        query: Shape [1, H, T, D], on the CPU.
        key: Shape [1, G, T, D], G a divisor of H.
        value: Shape [1, G, T, Dv].
        spans: The prompts with their completions; together they cover all T positions.
        scale: Factor on the scores; by default one over the root of D.
        window: A query sees keys whose position is less than this before its own; all of them by default. A further
            completion's positions go on from the prompt.
        softcap: Scores are bent below this: softcap · tanh(score / softcap).
        sinks: A logit for each head that takes part in its softmax with a value of zero. Shape [H].

    Returns:
        The attention's output. Shape [1, H, T, Dv].
    """
    rule = _Rule(1 / math.sqrt(query.shape[-1]) if scale is None else scale, window, softcap)
    wanted = value.shape[-1]
    # The kernel takes one width for all: zeros behind a query add nothing to a score, nor to an output.
    width = max(query.shape[-1], wanted)
    if query.shape[-1] != wanted:
        query, key, value = (pad(part, (0, width - part.shape[-1])) for part in (query, key, value))
    apply: Callable[..., Tensor] = _PackedAttention.apply
    # Autocast has done its part; the products of a capped piece are in float32 on purpose.
    with torch.autocast("cpu", enabled=False):
        output = apply(query, key, value, sinks, spans, rule)
    return output if width == wanted else output[..., :wanted]
