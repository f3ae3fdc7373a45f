"""β-DPO: a beta for every batch, and unlikely pairs left out (Wu et al. 2024, arXiv:2407.08639).

Pairs are drawn by how close their margin is to the running mean, and beta grows with the mean margin of those drawn.
Draws depend on the seed and the number of the update alone, so that all ranks draw alike and a resumed run goes on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

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
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_BETA = 1e-3
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class BetaDPOConfig:
    """Settings of β-DPO; symbols of the paper in brackets."""

    beta: float = beta_setting()
    gain: float = setting(0.6, "How much beta follows the mean margin of the pairs kept (a); 0: not.", ge=0)
    keep_share: float = setting(
        0.8, "Share of a controller batch's pairs that are kept (rho); 1: all.", gt=0, le=1
    )
    momentum: float = setting(
        0.9, "Share of the old value in the running mean and spread of margins (m).", ge=0, lt=1
    )
    seed: int = setting(0, "Seed of the draws.", ge=0)

    def __post_init__(self) -> None:
        check_settings(self)


class Decision(NamedTuple):
    """What is decided on a batch: the running moments with it, the pairs kept (ascending), their beta."""

    moments: Moments
    kept: list[int]
    beta: float


def draw_without_replacement(log_weights: list[float], count: int, draws: random.Random) -> list[int]:
    """Return ``count`` indices drawn one after the other, each time in proportion to ``exp(log_weights)``.

    The largest ``log w + Gumbel noise`` have that law (Efraimidis and Spirakis 2006); logarithms do not underflow.

    Example:
        >>> draw_without_replacement([0.0, -1e9, 0.0], 2, random.Random(0))
        [0, 2]
    """
    top = max(log_weights)

    def key(index: int) -> float:
        # 1 - random() lies in (0, 1]; its logarithm is 0 with a chance of 2^-53.
        return log_weights[index] - top - math.log(max(-math.log(1.0 - noise[index]), 1e-300))

    noise = [draws.random() for _ in log_weights]
    return sorted(sorted(range(len(log_weights)), key=key, reverse=True)[:count])


class BetaDPO(PreferenceMethod):
    """DPO on the pairs that are kept of each controller batch, with that batch's beta.

    Args:
        config: The settings.
        scope: What a controller batch is.
    """

    name = "beta_dpo"
    Settings = BetaDPOConfig
    neutral = BetaDPOConfig(gain=0.0, keep_share=1.0)
    needs = Needs(batch_evidence=True)
    why_not_steered = "it finds a beta of its own for every batch"

    def __init__(self, config: BetaDPOConfig | None = None, *, scope: Scope = "micro") -> None:
        self.config = config or BetaDPOConfig()
        self.scope = scope
        self.updates = 0
        self.moments = Moments(0.0, 0.0)
        self._beta = self.config.beta

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the method as a run's settings describe it, with the run's scope."""
        return cls(BetaDPOConfig(**context.own_with_beta()), scope=context.scope)

    @property
    def beta(self) -> float:
        """The latest batch's beta; the next batch's is known when its margins are."""
        return self._beta

    def decide(self, margins: Tensor) -> Decision:
        """Decide on a batch of finite margins, shape [N], N ≥ 1; changes no state."""
        config, count = self.config, len(margins)
        # The batch enters the moments before it is weighed by them: that is the authors' order.
        moments = follow(self.moments, batch_moments(margins), config.momentum)
        spread = max(moments.std, SMALLEST_STD)
        log_weights = [-0.5 * ((margin - moments.mean) / spread) ** 2 for margin in margins.tolist()]
        # The margin above int() is for products such as 100 · 0.29 = 28.999999999999996.
        size = max(1, int(count * config.keep_share + 1e-9))
        kept = list(range(count))
        if size < count:
            kept = draw_without_replacement(log_weights, size, random.Random(f"{config.seed}:{self.updates}"))
        excess = margins[kept].mean().item() - moments.mean
        return Decision(moments, kept, max(SMALLEST_BETA, config.beta * (1.0 + config.gain * excess)))

    def control(self, evidence: Tensor) -> Control:
        """Return the batch's beta, and weights N/k on the k pairs kept of N, 0 on others and on non-finite ones."""
        weight = evidence.new_zeros(evidence.shape)
        finite = evidence.isfinite().nonzero()[:, 0]
        if not len(finite):
            return super().control(evidence)
        decision = self.decide(finite_values(evidence))
        # The trainer takes the mean over all pairs: this makes it the mean over those kept.
        weight[finite[decision.kept]] = len(finite) / len(decision.kept)
        return Control(evidence.new_tensor(decision.beta), weight)

    def control_in_evaluation(self, evidence: Tensor) -> Control:
        """Keep every pair, at the settings' beta: what is measured shall not depend on draws or on the batching."""
        return Control(evidence.new_tensor(self.config.beta), evidence.new_ones(evidence.shape))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the weighted logistic loss of each pair. Shape [B]."""
        return control.weight * logistic_losses(forward.margins, control.beta)

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Let the running moments follow one controller batch."""
        margins = finite_values(evidence)
        kept = 0
        if margins.numel():
            decision = self.decide(margins)
            self.moments, self._beta, kept = decision.moments, decision.beta, len(decision.kept)
            self.updates += 1
        return {
            "beta_dpo/beta": self._beta,
            "beta_dpo/mean": self.moments.mean,
            "beta_dpo/std": self.moments.std,
            "beta_dpo/kept": float(kept),
        }

    def state_dict(self) -> State:
        """Return the running moments, the number of updates (which seeds the draws) and the latest beta."""
        return {
            "method": self.name,
            "version": 1,
            "updates": self.updates,
            "mean": self.moments.mean,
            "std": self.moments.std,
            "beta": self._beta,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        check_state(state, {"method": self.name, "version": 1})
        self.updates = int(state["updates"])
        self.moments = Moments(float(state["mean"]), float(state["std"]))
        self._beta = float(state["beta"])

    def summary(self) -> dict[str, Any]:
        """Return name and scope."""
        return {"name": self.name, "scope": self.scope}
