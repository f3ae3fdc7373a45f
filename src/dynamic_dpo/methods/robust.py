"""Robust DPO: a loss that is unbiased where labels are flipped at a known rate (Chowdhury et al., arXiv:2403.00409).

With flip rate ``e`` the expectation of the loss over noisy labels is DPO's loss over clean ones; it is therefore not
bounded below on a pair that is mislabelled. It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RobustConfig:
    """Settings of robust DPO: ``beta`` > 0, ``epsilon`` in [0, 0.5)."""

    beta: float = beta_setting()
    epsilon: float = setting(0.1, "Rate at which labels are flipped.", ge=0, lt=0.5)

    def __post_init__(self) -> None:
        check_settings(self)


class Robust(FixedBetaMethod):
    """Robust DPO with a constant beta."""

    name = "robust"
    Settings = RobustConfig
    of_differences = True
    neutral = RobustConfig(epsilon=0.0)
    config: RobustConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``((1 - e)(-log sigmoid(beta h)) - e (-log sigmoid(-beta h))) / (1 - 2 e)``. Shape [B]."""
        epsilon, margins = self.config.epsilon, forward.margins
        as_labelled = logistic_losses(margins, control.beta)
        as_flipped = logistic_losses(-margins, control.beta)
        losses = ((1.0 - epsilon) * as_labelled - epsilon * as_flipped) / (1.0 - 2.0 * epsilon)
        return control.weight * losses
