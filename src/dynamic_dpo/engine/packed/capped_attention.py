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


def _bent(query: Tensor, key: Tensor, scale: float, softcap: float) -> Tensor:
    """Return the scores of grouped queries as shares of the cap, in (-1, 1). Shape [G, H / G · Q, K]."""
    return (query @ key.mT).mul_(scale / softcap).tanh_()


def _hide(scores: Tensor, visible: Tensor) -> Tensor:
    """Put minus infinity, in place, where a query does not see a key."""
    scores.view(-1, *visible.shape).masked_fill_(~visible, -torch.inf)
    return scores


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
    bent = _bent(_grouped(query.to(dtype), groups), key[0].to(dtype), scale, softcap)
    scores = _hide(bent.mul_(softcap), visible)
    normalisers = scores.logsumexp(-1)
    output = scores.sub_(normalisers.unsqueeze(-1)).exp_() @ value[0].to(dtype)
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
    bent = _bent(states, keys, scale, softcap)
    weights = _hide(bent * softcap, visible).sub_(normalisers.reshape(groups, -1, 1)).exp_()
    to_value = weights.mT @ grad
    to_weights = (grad @ values.mT).sub_((grad * output).sum(-1, keepdim=True))
    # The slope of softcap · tanh(scale · product / softcap) by the product is scale · (1 - tanh²).
    to_scores = to_weights.mul_(weights).mul_(bent.square_().neg_().add_(1)).mul_(scale)
    return (to_scores @ keys).view(query.shape), (to_scores.mT @ states)[None], to_value[None]
