"""Length-normalised DPO: log-ratios per token (Lambert et al. 2024, "Tülu 3", arXiv:2411.15124, section 5.1).

TRL's ``sigmoid_norm``. Betas are larger than DPO's, since what they multiply is a mean over tokens. It has no state.
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
class DPONormConfig:
    """Settings of length-normalised DPO: ``beta`` > 0."""

    beta: float = beta_setting(5.0, in_files=5.0)

    def __post_init__(self) -> None:
        check_settings(self)


class DPONorm(FixedBetaMethod):
    """Length-normalised DPO with a constant beta; controllers see the summed margins."""

    name = "dpo_norm"
    Settings = DPONormConfig
    of_differences = True
    config: DPONormConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta (l_c / len_c - l_r / len_r))``, ``l`` log-ratios. Shape [B]."""
        return control.weight * logistic_losses(forward.length_normalised_margins, control.beta)
