"""How far rounding alone may take a log-probability or a margin: one answer for every check that asks.

Two ways to the same number (packed and plain rows, another cut, another number of ranks) round each token's
log-probability by itself, so that their sums drift apart like a random walk: with the square root of the tokens, and
in proportion to the arithmetic's machine epsilon. Measured as the distance between packed and plain rows, divided by
the square root of a margin's tokens, at 10 to 1,000 tokens, in nats; on the right in units of epsilon:

| arithmetic | SmolLM2-135M: root mean square | largest | tiny random models | largest / epsilon |
|---|---|---|---|---|
| bfloat16 autocast | 0.028 to 0.055 | 0.124 | 0.028 | 16 |
| bfloat16 weights | 0.025 to 0.064 | 0.117 | 0.029 | 15 |
| float16 weights | | | 0.0039 | 4 |
| float32 | 0.000003 to 0.00002 | 0.000023 | 0.000015 | |

A fault is further away: with dropout of 0.05 in its attention SmolLM2's margins are off by 0.35 to 0.6 in the same
measure (root mean square), with every weight moved by 3 % of its matrix's spread by 0.3 to 0.55.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Twice the largest distance that was measured, in units of epsilon.
_EPSILONS = 32
# What is allowed beside it, whatever the arithmetic: a hundred times what float32 needs, and still a tenth of what a
# short answer's margin is off by when one of two models was rounded to bfloat16.
_FLOOR = 1e-3
# Sums are kept in float32, whose spacing grows with the sum: five times what was measured at 1,000 tokens.
_SUM_EPSILONS = 1


def rounding_tolerance(num_tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far two roundings of a sum of token log-probabilities may lie apart, in nats.

    Args:
        num_tokens: Tokens behind each sum; behind a margin those of both answers. Shape [N].
        dtype: The arithmetic of the matrix products; see `arithmetic_of`.

    Returns:
        The tolerances, float64. Shape [N].

    Example:
        >>> tokens = torch.tensor([10, 1000])
        >>> [round(nats, 2) for nats in rounding_tolerance(tokens, torch.bfloat16).tolist()]
        [0.79, 7.94]
        >>> [round(nats, 4) for nats in rounding_tolerance(tokens, torch.float32).tolist()]
        [0.0032, 0.0355]
    """
    tokens = num_tokens.double()
    sums = _SUM_EPSILONS * torch.finfo(torch.float32).eps * tokens
    return tokens.sqrt() * (_EPSILONS * torch.finfo(dtype).eps + _FLOOR + sums)


def arithmetic_of(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the narrowest arithmetic in which a model's matrix products are made here and now.

    That is the autocast's in force, else the weights'; float32 products on a GPU that is allowed TF32 are as narrow
    as float16's.

    Args:
        weights: The weights' dtype.
        device: Where the model is.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    if weights == torch.float32 and device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return torch.float16
    return weights
