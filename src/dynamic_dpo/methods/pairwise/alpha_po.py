"""AlphaPO: SimPO with a reward of another shape than the logarithm (Gupta et al. 2025, arXiv:2501.03884).

With ``p`` the geometric mean of an answer's token probabilities its reward is ``beta (1 - p^-alpha) / alpha``, which
tends to ``beta log p``, SimPO's, as alpha goes to 0. No reference is needed; it has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, Needs, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.methods.simpo import length_normalised_differences
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

# exp of more leaves float32; such an answer has next to no probability, and its pair no gradient from there on.
_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class AlphaPOConfig:
    """Settings of AlphaPO: ``beta`` > 0, ``alpha`` in [-5, 5], ``gamma_beta_ratio`` ≥ 0."""

    beta: float = beta_setting(2.5, in_files=2.5)
    alpha: float = setting(
        0.25,
        "Shape of the reward; above 0 unlikely answers are told apart more strongly, 0: SimPO.",
        ge=-5,
        le=5,
    )
    gamma_beta_ratio: float = setting(
        0.1, "What the chosen answer's shaped reward should be ahead by, before beta: gamma / beta.", ge=0
    )

    def __post_init__(self) -> None:
        check_settings(self)


class AlphaPO(FixedBetaMethod):
    """AlphaPO with a constant beta; the evidence is the difference the loss acts on."""

    name = "alpha_po"
    Settings = AlphaPOConfig
    config: AlphaPOConfig
    needs = Needs(reference=False)

    def evidence(self, forward: PairForward) -> Tensor:
        """Return the difference of shaped rewards before beta, detached. Shape [B]."""
        return self._differences(forward).detach()

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta (s_c - s_r) - gamma)``, ``s = (1 - p^-alpha) / alpha``. Shape [B]."""
        ahead = self._differences(forward) - self.config.gamma_beta_ratio
        return control.weight * logistic_losses(ahead, control.beta)

    def _differences(self, forward: PairForward) -> Tensor:
        alpha = self.config.alpha
        if alpha == 0:
            return length_normalised_differences(forward)
        chosen = forward.policy_chosen_logps / forward.chosen_lengths
        rejected = forward.policy_rejected_logps / forward.rejected_lengths
        # expm1: a small alpha leaves nothing of 1 - exp(...) in float32.
        shaped = [(-alpha * logps).clamp(max=_LARGEST_EXPONENT).expm1() for logps in (chosen, rejected)]
        return (shaped[1] - shaped[0]) / alpha
