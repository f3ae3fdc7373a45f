"""What stands in the place of a log-ratio under another divergence than KL (Wang et al. 2023, arXiv:2309.16240).

DPO's log-ratio is ``f'(t)`` of the reverse KL divergence, ``t`` the ratio of the policy's probability to the
reference's. Another ``f`` gives another function of the log-ratio, equal to it to first order around 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dynamic_dpo.methods.objective.settings import Divergence

if TYPE_CHECKING:
    from torch import Tensor

# Exponents beyond it leave float32; from there on a log-ratio has no gradient.
_LARGEST_EXPONENT = 80.0


def score_of(logratios: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """Return ``f'(exp(l))`` of log-ratios ``l`` in nats, of the same shape.

    ``l``, ``1 - exp(-l)``, ``log 2 + log sigmoid(l)`` and ``(exp((alpha - 1) l) - 1) / (alpha - 1)`` for reverse and
    forward KL, Jensen-Shannon and alpha divergence.

    Example:
        >>> import torch
        >>> score_of(torch.tensor([0.0, 1.0]), "alpha_divergence", 0.0)  # forward KL
        tensor([0.0000, 0.6321])
    """
    import torch.nn.functional as F

    if divergence == "js_divergence":
        return math.log(2.0) + F.logsigmoid(logratios)
    order = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(divergence, alpha)
    # Close to 1 the quotient is the log-ratio in any arithmetic, and at 1 it is 0 / 0.
    if abs(order - 1.0) < 1e-6:
        return logratios
    return ((order - 1.0) * logratios).clamp(max=_LARGEST_EXPONENT).expm1() / (order - 1.0)
