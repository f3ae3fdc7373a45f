"""BCO on pairs: a classifier of single answers, chosen against rejected (Jung et al. 2024, arXiv:2404.04656).

As in TRL's trainer of pairs the rewards are not shifted by their running mean. It has no state.
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
class BCOPairConfig:
    """Settings of BCO on pairs: ``beta`` > 0."""

    beta: float = beta_setting()

    def __post_init__(self) -> None:
        check_settings(self)


class BCOPair(FixedBetaMethod):
    """BCO on pairs with a constant beta."""

    name = "bco_pair"
    Settings = BCOPairConfig
    config: BCOPairConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(r_c) - log sigmoid(-r_r)`` of each pair, ``r`` its rewards. Shape [B]."""
        import torch.nn.functional as F

        chosen = control.beta * forward.chosen_logratios
        rejected = control.beta * forward.rejected_logratios
        return control.weight * -(F.logsigmoid(chosen) + F.logsigmoid(-rejected))
