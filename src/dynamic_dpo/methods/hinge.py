"""The hinge loss of SLiC (Zhao et al. 2023, arXiv:2305.10425) on DPO's margin, as in RSO (arXiv:2309.06657).

Pairs whose reward margin has reached 1 push no further. It has no state.
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
class HingeConfig:
    """Settings of the hinge loss: ``beta`` > 0, the reciprocal of the margin at which a pair is left alone."""

    beta: float = beta_setting()

    def __post_init__(self) -> None:
        check_settings(self)


class Hinge(FixedBetaMethod):
    """The hinge loss with a constant beta."""

    name = "hinge"
    Settings = HingeConfig
    of_differences = True
    config: HingeConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``max(0, 1 - beta h)`` of each pair. Shape [B]."""
        return control.weight * (1.0 - control.beta * forward.margins).relu()
