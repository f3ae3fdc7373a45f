"""EXO on pairs: the policy's choice of the two is brought to the labels' by reverse KL (Ji et al., arXiv:2402.00856).

With ``q = sigmoid(beta h)``, the policy's probability of the chosen answer among the two, and labels wrong at rate
``e``, the loss is the divergence of ``(q, 1 - q)`` from ``(1 - e, e)``: equation 16 of the paper. It has a finite
optimum, and no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EXOPairConfig:
    """Settings of EXO on pairs: ``beta`` > 0, ``epsilon`` in (0, 0.5)."""

    beta: float = beta_setting()
    epsilon: float = setting(
        1e-3, "Share of wrong labels that the policy's choice is brought to.", gt=0, lt=0.5
    )

    def __post_init__(self) -> None:
        check_settings(self)


class EXOPair(FixedBetaMethod):
    """EXO on pairs with a constant beta."""

    name = "exo_pair"
    Settings = EXOPairConfig
    of_differences = True
    config: EXOPairConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``q log(q / (1 - e)) + (1 - q) log((1 - q) / e)`` of each pair. Shape [B]."""
        import torch.nn.functional as F

        epsilon, logits = self.config.epsilon, control.beta * forward.margins
        of_chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-epsilon))
        of_rejected = (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(epsilon))
        return control.weight * (of_chosen + of_rejected)
