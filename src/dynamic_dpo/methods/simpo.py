"""SimPO: log-probabilities per token instead of log-ratios, so no reference (Meng et al. 2024, arXiv:2405.14734).

It has no state. Betas are about twenty times DPO's, since what they multiply is a mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, Needs, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


def length_normalised_differences(forward: PairForward) -> Tensor:
    """Return chosen minus rejected policy log-probability per token, nats a token. Shape [B]."""
    chosen = forward.policy_chosen_logps / forward.chosen_lengths
    return chosen - forward.policy_rejected_logps / forward.rejected_lengths


@dataclass(frozen=True)
class SimPOConfig:
    """Settings of SimPO: ``beta`` > 0, ``gamma_beta_ratio`` ≥ 0."""

    beta: float = beta_setting(2.0, in_files=2.0)
    gamma_beta_ratio: float = setting(
        0.5, "What the chosen answer should be ahead by, in nats a token: gamma / beta.", ge=0
    )

    def __post_init__(self) -> None:
        check_settings(self)


class SimPO(FixedBetaMethod):
    """SimPO with a constant beta; the evidence is the difference the loss acts on, per token."""

    name = "simpo"
    Settings = SimPOConfig
    config: SimPOConfig
    needs = Needs(reference=False)

    def evidence(self, forward: PairForward) -> Tensor:
        """Return the difference of log-probabilities per token, detached. Shape [B]."""
        return length_normalised_differences(forward).detach()

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta (lp_c / len_c - lp_r / len_r) - gamma)`` of each pair. Shape [B]."""
        ahead = length_normalised_differences(forward) - self.config.gamma_beta_ratio
        return control.weight * logistic_losses(ahead, control.beta)
