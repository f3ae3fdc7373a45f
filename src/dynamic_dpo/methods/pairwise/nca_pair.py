"""NCA on pairs: noise contrast of each answer with the reference, by itself (Chen et al. 2024, arXiv:2402.05369).

The chosen answer's reward is to rise, and both rewards, as if drawn from noise, are to be small: the chosen answer
does not become less likely, as DPO lets it. It has a finite optimum, and no state.
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
class NCAPairConfig:
    """Settings of NCA on pairs: ``beta`` > 0."""

    beta: float = beta_setting(0.01, in_files=0.01)

    def __post_init__(self) -> None:
        check_settings(self)


class NCAPair(FixedBetaMethod):
    """NCA on pairs with a constant beta."""

    name = "nca_pair"
    Settings = NCAPairConfig
    config: NCAPairConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log s(r_c) - (log s(-r_c) + log s(-r_r)) / 2``, s the sigmoid, ``r`` rewards. Shape [B]."""
        import torch.nn.functional as F

        chosen = control.beta * forward.chosen_logratios
        rejected = control.beta * forward.rejected_logratios
        as_noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
        return control.weight * (-F.logsigmoid(chosen) - 0.5 * as_noise)
