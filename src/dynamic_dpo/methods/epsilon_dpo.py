"""ε-DPO: a beta for every pair, by how slightly moved policies rank it (Lee et al. 2025, arXiv:2502.13177).

The policies of a slightly smaller and larger beta are estimated by moving the policy's logits away from the
reference's and towards them. A pair ranked more and more clearly along the way gets a smaller beta, one ranked less
and less clearly a larger one, and the common beta follows the mean step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dynamic_dpo.methods.base import (
    Control,
    LogitChunk,
    Needs,
    PairForward,
    PreferenceMethod,
    State,
    TokenStatistic,
    check_state,
    finite_margins,
)
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

AWAY, TOWARDS = "gain_away_from_reference", "gain_towards_reference"


def gain_of_moved_logits(chunk: LogitChunk, epsilon: float) -> Tensor:
    """Return ``log p'(target) - log p(target)`` of each token, p' of logits ``(1 + ε) z_π - ε z_ρ``. Shape [n].

    Written as a difference from the policy, it is exactly 0 where policy and reference agree, and small numbers are
    not lost in the sums of large ones. A negative ``epsilon`` moves towards the reference.
    """
    if chunk.reference is None:
        raise ValueError("the reference's logits are needed: ask for a live reference")
    moved = chunk.policy + epsilon * (chunk.policy - chunk.reference)
    targets = chunk.targets[:, None]
    gain_of_target = moved.gather(1, targets)[:, 0] - chunk.policy.gather(1, targets)[:, 0]
    return gain_of_target - (moved.logsumexp(-1) - chunk.policy.logsumexp(-1))


@dataclass(frozen=True)
class EpsilonDPOConfig:
    """Settings of ε-DPO: ``beta`` > 0 at the start, ``epsilon`` in [0, 1)."""

    beta: float = beta_setting(0.01, in_files=0.01)
    epsilon: float = setting(0.01, "Size of the steps of beta; 0: plain DPO.", ge=0, lt=1)

    def __post_init__(self) -> None:
        check_settings(self)


class EpsilonDPO(PreferenceMethod):
    """DPO with a beta of each pair's own around a common one that moves once an optimizer step."""

    name = "epsilon_dpo"
    Settings = EpsilonDPOConfig
    neutral = EpsilonDPOConfig(epsilon=0.0)
    why_not_steered = "it moves its beta itself, pair by pair"
    scope = "step"

    def __init__(self, config: EpsilonDPOConfig | None = None) -> None:
        self.config = config or EpsilonDPOConfig()
        self._beta = self.config.beta
        epsilon = self.config.epsilon
        self.needs = Needs(
            statistics=(
                TokenStatistic(AWAY, partial(gain_of_moved_logits, epsilon=epsilon), live_reference=True),
                TokenStatistic(TOWARDS, partial(gain_of_moved_logits, epsilon=-epsilon), live_reference=True),
            )
        )

    @property
    def beta(self) -> float:
        """The common beta."""
        return self._beta

    def evidence(self, forward: PairForward) -> Tensor:
        """Return each pair's step: 1 where ``r₊ > r > r₋``, -1 where ``r₋ > r > r₊``, else 0. Shape [B].

        r is the pair's difference of log-probabilities, r₊ and r₋ those of the moved policies. NaN where the margin
        is not finite.
        """
        away, towards = forward.statistics[AWAY], forward.statistics[TOWARDS]
        above, below = away[:, 0] - away[:, 1], towards[:, 0] - towards[:, 1]  # r₊ - r and r₋ - r
        margins = forward.margins.detach()
        step = ((above > 0) & (below < 0)).to(margins.dtype) - ((below > 0) & (above < 0)).to(margins.dtype)
        return step.where(margins.isfinite() & above.isfinite() & below.isfinite(), float("nan"))

    def control(self, evidence: Tensor) -> Control:
        """Return ``β / (1 + ε step)`` of each pair."""
        common = super().control(evidence)
        return common._replace(beta=common.beta / (1.0 + self.config.epsilon * evidence.clamp(-1.0, 1.0)))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the weighted logistic loss of each pair. Shape [B]."""
        return control.weight * logistic_losses(forward.margins, control.beta)

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Move the common beta to ``β / (1 + ε · mean step)``."""
        steps = finite_margins(evidence).double().clamp(-1.0, 1.0)
        mean = steps.mean().item() if len(steps) else 0.0
        self._beta /= 1.0 + self.config.epsilon * mean
        return {"epsilon_dpo/beta": self._beta, "epsilon_dpo/mean_step": mean}

    def state_dict(self) -> State:
        """Return the common beta."""
        return {"method": self.name, "version": 1, "beta": self._beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        check_state(state, {"method": self.name, "version": 1})
        self._beta = float(state["beta"])
