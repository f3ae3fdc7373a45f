"""DiscoPOP: a blend of logistic and exponential loss that a search found (Lu et al. 2024, arXiv:2406.08414).

Equation 5 of the paper, which calls it log-ratio modulated loss. Around margin 0 it is not convex; it has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiscoPOPConfig:
    """Settings of DiscoPOP: ``beta`` > 0, ``tau`` in (0, 1]."""

    beta: float = beta_setting(0.05, in_files=0.05)
    # With a larger one the loss of a pair that is ranked wrongly grows exponentially.
    tau: float = setting(
        0.05,
        "Width, in reward margins, over which the logistic loss gives way to the exponential.",
        gt=0,
        le=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)


class DiscoPOP(FixedBetaMethod):
    """DiscoPOP with a constant beta."""

    name = "discopop"
    Settings = DiscoPOPConfig
    of_differences = True
    config: DiscoPOPConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``(1 - m)(-log sigmoid(x)) + m exp(-x)``, ``x = beta h``, ``m = sigmoid(x / tau)``. Shape [B]."""
        import torch.nn.functional as F

        logits = control.beta * forward.margins
        modulation = logits / self.config.tau
        logistic = -F.logsigmoid(logits) * (-modulation).sigmoid()
        # One exponential: where exp(-x) would overflow, m has long vanished.
        return control.weight * (logistic + (F.logsigmoid(modulation) - logits).exp())
