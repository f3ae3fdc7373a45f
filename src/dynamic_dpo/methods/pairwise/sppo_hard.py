"""SPPO with hard labels: log-ratios are drawn to plus and minus half of 1 / beta (Wu et al. 2024, arXiv:2405.00675).

Equation 4.7 of the paper with the chosen answer's chance of winning set to 1 and the rejected one's to 0; its ``eta``
is ``1 / beta``. It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SPPOHardConfig:
    """Settings of SPPO with hard labels: ``beta`` > 0, the reciprocal of the paper's ``eta``."""

    beta: float = beta_setting(1e-3, in_files=1e-3)

    def __post_init__(self) -> None:
        check_settings(self)


class SPPOHard(FixedBetaMethod):
    """SPPO with hard labels and a constant beta."""

    name = "sppo_hard"
    Settings = SPPOHardConfig
    config: SPPOHardConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``(l_c - 1 / (2 beta))² + (l_r + 1 / (2 beta))²``, ``l`` log-ratios in nats. Shape [B]."""
        target = 0.5 / control.beta
        chosen = (forward.chosen_logratios - target).square()
        return control.weight * (chosen + (forward.rejected_logratios + target).square())
