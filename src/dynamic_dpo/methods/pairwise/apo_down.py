"""APO-down: both answers down, the rejected one further (D'Oosterlinck et al. 2024, arXiv:2408.06266).

For pairs whose chosen answers are worse than what the policy writes: equation 8 of the paper. It has no state.
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
class APODownConfig:
    """Settings of APO-down: ``beta`` > 0."""

    beta: float = beta_setting()

    def __post_init__(self) -> None:
        check_settings(self)


class APODown(FixedBetaMethod):
    """APO-down with a constant beta."""

    name = "apo_down"
    Settings = APODownConfig
    config: APODownConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``sigmoid(r_c) + 1 - sigmoid(beta h)`` of each pair, ``r_c`` its chosen reward. Shape [B]."""
        chosen = (control.beta * forward.chosen_logratios).sigmoid()
        return control.weight * (chosen + 1.0 - (control.beta * forward.margins).sigmoid())
