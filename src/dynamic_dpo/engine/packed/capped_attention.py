"""Attention whose scores are bent below a cap, as Gemma 2 has it (arXiv:2408.00118), forward and backward.

PyTorch's kernel for a CPU knows no cap, so these are plain matrix products: they make all scores of a piece at once,
and the backward pass makes them again instead of keeping them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """Lay the queries of all heads that share a key behind each other: [1, H, Q, D] as [G, H / G · Q, D]."""
    return tensor.reshape(groups, -1, tensor.shape[-1])


def _scores(
    query: Tensor, key: Tensor, visible: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Return the capped scores, hidden ones at minus infinity, and their slope. Shape [G, H / G · Q, K] both."""
    bent = torch.tanh(query @ key.mT * (scale / softcap))
    hidden = ~visible.repeat(query.shape[1] // visible.shape[0], 1)
    return (softcap * bent).masked_fill_(hidden, -torch.inf), 1 - bent.square()


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, *, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Return softmax(softcap · tanh(scale · query · key / softcap)) · value and its normaliser.

    Args:
        query: Shape [1, H, Q, D].
        key: Shape [1, G, K, D], G a divisor of H.
        value: Shape [1, G, K, D].
        visible: Which query sees which key; each sees one at least. Shape [Q, K], bool.
        scale: Factor on the scores before they are capped.
        softcap: The bound of a score.

    Returns:
        The output, shape [1, H, Q, D], and the log of each query's sum of exponentials, shape [1, H, Q], float32
        or float64.
    """
    dtype, groups = torch.promote_types(query.dtype, torch.float32), key.shape[1]
    scores, _ = _scores(_grouped(query.to(dtype), groups), key[0].to(dtype), visible, scale, softcap)
    normalisers = scores.logsumexp(-1)
    output = torch.exp(scores - normalisers.unsqueeze(-1)) @ value[0].to(dtype)
    return output.view(query.shape).to(query.dtype), normalisers.view(query.shape[:3])


def capped_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normalisers: Tensor,
    visible: Tensor,
    *,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to query, key and value, float32 or float64, in their shapes.

    Args:
        grad: Gradient to the output. Shape [1, H, Q, D].
        query: See `capped_attention`.
        key: See there.
        value: See there.
        output: The output of all that the queries attended to. Shape [1, H, Q, D].
        normalisers: The same's normalisers. Shape [1, H, Q].
        visible: See there.
        scale: See there.
        softcap: See there.
    """
    dtype, groups = normalisers.dtype, key.shape[1]
    grad, states, output = (_grouped(part.to(dtype), groups) for part in (grad, query, output))
    keys, values = key[0].to(dtype), value[0].to(dtype)
    scores, slope = _scores(states, keys, visible, scale, softcap)
    weights = torch.exp(scores - normalisers.reshape(groups, -1, 1))
    to_value = weights.mT @ grad
    to_scores = weights * (grad @ values.mT - (grad * output).sum(-1, keepdim=True)) * slope * scale
    return (to_scores @ keys).view(query.shape), (to_scores.mT @ states)[None], to_value[None]
