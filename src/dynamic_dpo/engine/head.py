"""Log-probabilities of completion tokens from hidden states, without ever holding all logits.

The output head runs on the predicting positions alone, in chunks, with a float32 log-softmax. Its backward
computes each chunk's logits again instead of keeping them: memory is one chunk, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamic_dpo.loss.dpo_loss import at_least_float32


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    # Autocast does not reach into a custom function's backward: fix the dtype once, for both directions.
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _ChunkedTokenLogps(torch.autograd.Function):
    """``log_softmax(hidden @ weight.T + bias)[target]``, chunk by chunk, logits recomputed in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> Tensor:
        dtype = _matmul_dtype(hidden)
        cast_weight = weight.to(dtype)
        logps, normalisers = [], []
        for states, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            logits = at_least_float32(states.to(dtype) @ cast_weight.T)
            if bias is not None:
                logits += bias
            normaliser = logits.logsumexp(-1)
            logps.append(logits.gather(1, wanted[:, None])[:, 0] - normaliser)
            normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.chunk, ctx.dtype = chunk, dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype, chunk = ctx.dtype, ctx.chunk
        cast_weight = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].to(dtype)
            logits = at_least_float32(states @ cast_weight.T)
            if bias is not None:
                logits += bias
            # d logp / d logits = onehot(target) - softmax
            slope = logits.sub_(normalisers[part, None]).exp_().neg_()
            slope[torch.arange(len(slope), device=slope.device), targets[part]] += 1.0
            slope *= grad[part, None]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast_weight
            if grad_weight is not None:
                if grad_weight.dtype == dtype:
                    grad_weight.addmm_(slope.T, states)
                else:
                    grad_weight += slope.T @ states
        return grad_hidden, grad_weight, grad_bias, None, None


def is_plain_linear(head: nn.Module) -> bool:
    """Return whether ``head`` is an unmodified linear layer, whose weight may be used directly."""
    hooked = head._forward_hooks or head._forward_pre_hooks
    return type(head) is nn.Linear and not hooked


def token_logps(head: nn.Module, hidden: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
    """Return the log-probability of each target given the hidden state that predicts it.

    Args:
        head: Output head, [N, H] → [N, V]. An unmodified linear layer takes the fast path; any other module
            (adapters on the head, quantised layers) is called as it is and recomputed in backward.
        hidden: Hidden states of the predicting positions. Shape [N, H].
        targets: Token ids they predict. Shape [N].
        chunk: Positions whose logits exist at a time, at least 1.

    Returns:
        Log-probabilities in nats, float32 (float64 for float64 states). Shape [N].
    """
    if is_plain_linear(head):
        apply: Callable[..., Tensor] = _ChunkedTokenLogps.apply
        return apply(hidden, head.weight, head.bias, targets, chunk)

    def chunk_logps(states: Tensor, wanted: Tensor) -> Tensor:
        logits = at_least_float32(head(states))
        return -F.cross_entropy(logits, wanted, reduction="none")

    parts = []
    for states, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(chunk_logps, states, wanted, use_reentrant=False))
        else:
            parts.append(chunk_logps(states, wanted))
    return torch.cat(parts)
