"""APO-zero: chosen answers up, rejected ones down, from the reference (D'Oosterlinck et al. 2024, arXiv:2408.06266).

For pairs whose chosen answers are better than what the policy writes: equation 7 of the paper. It has no state.
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
class APOZeroConfig:
    """Settings of APO-zero: ``beta`` > 0."""

    beta: float = beta_setting()

    def __post_init__(self) -> None:
        check_settings(self)


class APOZero(FixedBetaMethod):
    """APO-zero with a constant beta."""

    name = "apo_zero"
    Settings = APOZeroConfig
    config: APOZeroConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``1 - sigmoid(r_c) + sigmoid(r_r)`` of each pair, ``r`` its rewards. Shape [B]."""
        chosen = (control.beta * forward.chosen_logratios).sigmoid()
        rejected = (control.beta * forward.rejected_logratios).sigmoid()
        return control.weight * (1.0 - chosen + rejected)
