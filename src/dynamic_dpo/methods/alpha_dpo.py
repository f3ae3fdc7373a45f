"""α-DPO: SimPO's loss with a margin to reach that each pair sets itself (Wu et al. 2024, arXiv:2410.10148).

What the chosen answer must be ahead by grows with how far the policy has left the reference on the pair, measured
against the running mean and spread over pairs; that term carries no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dynamic_dpo.methods.base import (
    BuildContext,
    Control,
    Needs,
    PairForward,
    PreferenceMethod,
    State,
    check_state,
)
from dynamic_dpo.methods.building_blocks import Moments, batch_moments, finite_values, follow
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import Scope, beta_setting
from dynamic_dpo.methods.simpo import length_normalised_differences
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class AlphaDPOConfig:
    """Settings of α-DPO; symbols of the paper."""

    beta: float = beta_setting()
    gamma: float = setting(0.5, "What the chosen answer must be ahead by on an average pair, in nats.", ge=0)
    alpha: float = setting(
        0.0, "How much more of it where the policy has left the reference; 0: no reference is used.", ge=0
    )
    length_normalised: bool = setting(
        False, "Divide log-probabilities by the completions' tokens; gamma is then in nats a token."
    )
    momentum: float = setting(
        0.9, "Share of the old value in the running mean and spread of margins.", ge=0, lt=1
    )

    def __post_init__(self) -> None:
        check_settings(self)


class AlphaDPO(PreferenceMethod):
    """α-DPO with a constant beta.

    Args:
        config: The settings.
        scope: What a controller batch is.
    """

    name = "alpha_dpo"
    Settings = AlphaDPOConfig
    why_not_steered = "its margin to reach, not its beta, is what follows the batches"

    def __init__(self, config: AlphaDPOConfig | None = None, *, scope: Scope = "micro") -> None:
        self.config = config or AlphaDPOConfig()
        self.scope = scope
        adapts = self.config.alpha > 0
        self.needs = Needs(reference=adapts, batch_evidence=adapts)
        self.moments: Moments | None = None

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the method as a run's settings describe it, with the run's scope."""
        return cls(AlphaDPOConfig(**context.own_with_beta()), scope=context.scope)

    @property
    def beta(self) -> float:
        """The constant."""
        return self.config.beta

    def evidence(self, forward: PairForward) -> Tensor:
        """Return the margins, per token where the settings say so, detached. Shape [B]."""
        normalised = self.config.length_normalised
        return (forward.length_normalised_margins if normalised else forward.margins).detach()

    def control(self, evidence: Tensor) -> Control:
        """Return what each pair must be ahead by, on the running moments with this batch in them."""
        margins = finite_values(evidence)
        return self._control(evidence, self._moments_with(margins) if len(margins) else self.moments)

    def control_in_evaluation(self, evidence: Tensor) -> Control:
        """Return the same on the moments of training: what is measured shall not depend on the batching."""
        return self._control(evidence, self.moments)

    def _control(self, evidence: Tensor, moments: Moments | None) -> Control:
        offset = evidence.new_full(evidence.shape, self.config.gamma)
        if moments is not None and self.config.alpha:
            scores = (evidence - moments.mean) / max(moments.std, SMALLEST_STD)
            offset = offset + self.config.alpha * scores
        return super().control(evidence)._replace(offset=offset)

    def _moments_with(self, margins: Tensor) -> Moments:
        """Return the running moments once a batch of finite margins has entered; the first one is taken as it is."""
        latest = batch_moments(margins)
        return latest if self.moments is None else follow(self.moments, latest, self.config.momentum)

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``-log sigmoid(beta ((lp_c - lp_r) - offset))`` of each pair. Shape [B]."""
        ahead = forward.policy_chosen_logps - forward.policy_rejected_logps
        if self.config.length_normalised:
            ahead = length_normalised_differences(forward)
        offset = self.config.gamma if control.offset is None else control.offset
        return control.weight * logistic_losses(ahead - offset, control.beta)

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Let the running moments follow one controller batch."""
        margins = finite_values(evidence)
        if margins.numel():
            self.moments = self._moments_with(margins)
        mean, std = self.moments or Moments(0.0, 0.0)
        return {"alpha_dpo/mean": mean, "alpha_dpo/std": std}

    def state_dict(self) -> State:
        """Return the running moments; ``None`` before the first batch."""
        moments = None if self.moments is None else list(self.moments)
        return {"method": self.name, "version": 1, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        check_state(state, {"method": self.name, "version": 1})
        self.moments = None if state["moments"] is None else Moments(*map(float, state["moments"]))

    def summary(self) -> dict[str, Any]:
        """Return name and scope."""
        return {"name": self.name, "scope": self.scope}
