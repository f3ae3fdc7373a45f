"""Log-probabilities of completion tokens from hidden states, without ever holding all logits.

The output head runs on the predicting positions alone, in chunks, with a float32 log-softmax. The first chunks'
exponentials are kept for backward while they fit `KEPT_BYTES`; the logits of the others are computed again. So memory
is bounded, whatever the vocabulary. What else a method wants of the logits (`TokenStatistic`) is computed while a
chunk is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamic_dpo.engine.sharded import called_once, is_sharded, unsharded_type
from dynamic_dpo.loss.dpo_loss import at_least_float32
from dynamic_dpo.methods.base import LogitChunk, TokenStatistic

# What a forward pass may keep of its logits: on a CPU a micro-batch's whole share, on a GPU a small part.
KEPT_BYTES = 2**27


class LiveReference(NamedTuple):
    """The reference at the same predicting positions: what it saw there and how that becomes logits.

    Attributes:
        states: One row a position; whatever ``logits`` takes. Shape [N, ...].
        logits: From a chunk of states to logits of shape [n, V].
    """

    states: Tensor
    logits: Callable[[Tensor], Tensor]


class LogitTransform(NamedTuple):
    """What a model does to its head's output ``x``: ``cap · tanh(scale · x / cap)``, without a cap ``scale · x``.

    Soft caps: Gemma Team 2024, arXiv:2408.00118, section 2.

    Example:
        >>> LogitTransform(scale=0.5, cap=2.0)(torch.tensor([0.0, 4.0, 1e9]))
        tensor([0.0000, 1.5232, 2.0000])
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the transformed logits, of the same shape."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform ``logits``, which no gradient is taken of, in place and return them."""
        if self.scale != 1:
            logits *= self.scale
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, transformed: Tensor) -> Tensor | float:
        """Return the transform's derivative where it gave ``transformed``: ``scale · (1 - (transformed / cap)²)``."""
        if self.cap is None:
            return self.scale
        return (transformed / self.cap).square_().neg_().add_(1).mul_(self.scale)


class Readout(NamedTuple):
    """What is to be read at each predicting position beside the target's log-probability."""

    statistics: tuple[TokenStatistic, ...] = ()
    reference: LiveReference | None = None

    def read(self, part: slice, logits: Tensor, targets: Tensor, logps: Tensor) -> list[Tensor]:
        """Return the statistics of one chunk (float32 or float64 logits, shape [n, V]), each of shape [n]."""
        if not self.statistics:
            return []
        with torch.no_grad():
            reference = None
            if self.reference is not None:
                reference = at_least_float32(self.reference.logits(self.reference.states[part]))
            chunk = LogitChunk(logits.detach(), reference, targets, logps.detach())
            return [statistic.compute(chunk) for statistic in self.statistics]


class TokenScores(NamedTuple):
    """Log-probabilities of the targets, nats, shape [N], and the statistics beside them, shape [S, N].

    The balancing loss of a mixture of experts, shape [], stands with them where it was asked for.
    """

    logps: Tensor
    statistics: Tensor
    router_loss: Tensor | None = None


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    # Autocast does not reach into a custom function's backward: fix the dtype once, for both directions.
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _ChunkedTokenLogps(torch.autograd.Function):
    """``log_softmax(transform(hidden @ weight.T + bias))[target]``, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        readout: Readout,
        transform: LogitTransform,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = _matmul_dtype(hidden)
        cast_weight = weight.to(dtype)
        logps, normalisers, read = [], [], []
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        # The derivative of a cap wants the logits themselves, which exponentials no longer tell.
        room = KEPT_BYTES if keep and transform.cap is None else 0
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = at_least_float32(hidden[part].to(dtype) @ cast_weight.T)
            if bias is not None:
                logits += bias
            transform.apply_(logits)
            wanted = logits.gather(1, targets[part, None])[:, 0]
            # Statistics read the logits after this; without them the chunk may be overwritten.
            if readout.statistics:
                normaliser = logits.logsumexp(-1)
            else:
                normaliser, peak = _consume_to_logsumexp(logits)
                if (room := room - logits.nbytes) >= 0:
                    kept[start] = logits, peak - normaliser
            logps.append(wanted - normaliser)
            normalisers.append(normaliser)
            read.append(readout.read(part, logits, targets[part], logps[-1]))
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.chunk, ctx.dtype, ctx.kept, ctx.transform = chunk, dtype, kept, transform
        all_logps = torch.cat(logps)
        statistics = _join(read, all_logps)
        ctx.mark_non_differentiable(statistics)
        return all_logps, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype, chunk, transform = ctx.dtype, ctx.chunk, ctx.transform
        cast_weight = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].to(dtype)
            # d logp / d logits = onehot(target) - softmax; the transform's own derivative comes after it.
            inner: Tensor | float = transform.scale
            if start in ctx.kept:
                # Overwritten here, so gone for a second backward pass, which computes it again.
                slope, to_softmax = ctx.kept.pop(start)
                slope *= -(grad[part] * to_softmax.exp())[:, None]
            else:
                slope = at_least_float32(states @ cast_weight.T)
                if bias is not None:
                    slope += bias
                inner = transform.slope(transform.apply_(slope))
                slope.sub_(normalisers[part, None]).exp_().mul_(-grad[part, None])
            slope[torch.arange(len(slope), device=slope.device), targets[part]] += grad[part]
            if transform != LogitTransform():
                slope *= inner
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast_weight
            if needs_weight and grad_weight is None:
                grad_weight = (slope.T @ states).to(weight.dtype)
            elif grad_weight is not None and grad_weight.dtype == dtype:
                grad_weight.addmm_(slope.T, states)
            elif grad_weight is not None:
                grad_weight += slope.T @ states
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _consume_to_logsumexp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn ``logits`` into ``exp(logits - peak)``; return their log-sum-exp and the peak, each of shape [n]."""
    peak = logits.amax(-1, keepdim=True)
    # A row of -inf has no finite peak to subtract.
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    return logits.sub_(peak).exp_().sum(-1).log_() + peak[:, 0], peak[:, 0]


def _join(read: list[list[Tensor]], logps: Tensor) -> Tensor:
    """Put chunks of statistics together. Shape [S, N]."""
    joined = [torch.cat(chunks).to(logps.dtype) for chunks in zip(*read, strict=True)]
    return torch.stack(joined) if joined else logps.new_empty(0, len(logps))


def is_plain_linear(head: nn.Module) -> bool:
    """Return whether ``head`` is an unmodified linear layer, whose weight may be used directly.

    A sharded one's only while it is called, see `token_scores`.
    """
    hooks_of_sharding = 1 if is_sharded(head) else 0
    hooked = max(len(head._forward_hooks), len(head._forward_pre_hooks)) > hooks_of_sharding
    return unsharded_type(head) is nn.Linear and not hooked


def token_scores(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk: int,
    readout: Readout | None = None,
    transform: LogitTransform | None = None,
) -> TokenScores:
    """Return the log-probability of each target given the hidden state that predicts it.

    Args:
        head: Output head, [N, H] → [N, V]. An unmodified linear layer takes the fast path; any other module
            (adapters on the head, quantised layers) is called as it is and recomputed in backward. A sharded one is
            called once, however many chunks there are: ranks have different numbers of them.
        hidden: Hidden states of the predicting positions. Shape [N, H].
        targets: Token ids they predict. Shape [N].
        chunk: Positions whose logits exist at a time, at least 1.
        readout: What else is to be read from the logits; nothing by default.
        transform: What the model does to its head's output; nothing by default.

    Returns:
        Log-probabilities in nats, float32 (float64 for float64 states), and the statistics, without gradient.
    """
    readout, transform = readout or Readout(), transform or LogitTransform()
    if not is_sharded(head):
        return _chunked_scores(head, head, hidden, targets, chunk, readout, transform)
    forward = head.forward

    def score(states: Tensor) -> tuple[Tensor, Tensor]:
        return _chunked_scores(head, forward, states, targets, chunk, readout, transform)[:2]

    return TokenScores(*called_once(head, score, hidden))


def _chunked_scores(
    head: nn.Module,
    to_logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    chunk: int,
    readout: Readout,
    transform: LogitTransform,
) -> TokenScores:
    """Return what `token_scores` does, with the head's whole weights at hand."""
    if is_plain_linear(head):
        apply: Callable[..., tuple[Tensor, Tensor]] = _ChunkedTokenLogps.apply
        keep = torch.is_grad_enabled()
        return TokenScores(*apply(hidden, head.weight, head.bias, targets, chunk, readout, transform, keep))

    def chunk_scores(states: Tensor, wanted: Tensor, part: slice) -> tuple[Tensor, list[Tensor]]:
        logits = transform(at_least_float32(to_logits(states)))
        logps = -F.cross_entropy(logits, wanted, reduction="none")
        return logps, readout.read(part, logits, wanted, logps)

    parts, read = [], []
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        inputs = hidden[part], targets[part], part
        if torch.is_grad_enabled():
            logps, statistics = checkpoint(chunk_scores, *inputs, use_reentrant=False)
        else:
            logps, statistics = chunk_scores(*inputs)
        parts.append(logps)
        read.append(statistics)
    joined = torch.cat(parts)
    return TokenScores(joined, _join(read, joined))
