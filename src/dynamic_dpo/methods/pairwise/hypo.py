"""HyPO: DPO that believes its reference only where it ranks the pair rightly (Yuan et al. 2026, arXiv:2602.11902).

Where the reference prefers the rejected answer, DPO's loss is content once the policy is less wrong than it; here the
reference counts as neutral on such pairs. It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HyPOConfig:
    """Settings of HyPO: ``beta`` > 0."""

    beta: float = beta_setting()

    def __post_init__(self) -> None:
        check_settings(self)


class HyPO(FixedBetaMethod):
    """HyPO with a constant beta; controllers see the margins over the reference as it is."""

    name = "hypo"
    Settings = HyPOConfig
    config: HyPOConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta (d - max(0, d_ref)))``, ``d`` the policy's difference. Shape [B]."""
        reference = forward.ref_chosen_logps - forward.ref_rejected_logps
        return control.weight * logistic_losses(forward.margins + reference.clamp(max=0.0), control.beta)
