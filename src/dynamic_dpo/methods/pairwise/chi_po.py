"""χPO: ``z + log z`` in place of DPO's ``log z``, ``z`` a ratio of probabilities (Huang et al., arXiv:2407.13399).

It is the implicit reward under a mix of χ² and KL divergence: ratios far above 1 cost more than their logarithm, and
the policy stays where the reference has data. It has no state.
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
class ChiPOConfig:
    """Settings of χPO: ``beta`` > 0, ``max_reward`` > 0 or ``None``, ``max_logratio`` in (0, 80]."""

    beta: float = beta_setting()
    max_reward: float | None = setting(
        None,
        "Bound R of rewards: reward margins are cut to [-2 R, 2 R] as in the paper; null: not cut.",
        gt=0,
    )
    max_logratio: float = setting(
        20.0, "Log-ratio in nats from which the linear part of the link grows no more.", gt=0, le=80
    )

    def __post_init__(self) -> None:
        check_settings(self)


class ChiPO(FixedBetaMethod):
    """χPO with a constant beta; controllers see the margins of log-ratios."""

    name = "chi_po"
    Settings = ChiPOConfig
    config: ChiPOConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta (z_c + log z_c - z_r - log z_r))``, the reward margin cut. Shape [B]."""
        limit, bound = self.config.max_logratio, self.config.max_reward
        ratios = (
            forward.chosen_logratios.clamp(max=limit).exp()
            - forward.rejected_logratios.clamp(max=limit).exp()
        )
        reward_margins = control.beta * (ratios + forward.margins)
        if bound is not None:
            reward_margins = reward_margins.clamp(-2.0 * bound, 2.0 * bound)
        return control.weight * logistic_losses(reward_margins, control.beta.new_ones(()))
