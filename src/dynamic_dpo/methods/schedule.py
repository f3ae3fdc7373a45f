"""The control arm ``schedule``: beta grows by a fixed rate, blind to the margins.

Set to the drift that a risk controller shows on noise, it separates what the controller's sensing gains from
what its drift alone would have done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from dynamic_dpo.methods.base import (
    BuildContext,
    PreferenceMethod,
    State,
    check_state,
    finite_margins,
)
from dynamic_dpo.methods.building_blocks import SteeringMethod
from dynamic_dpo.methods.dpo import loss_to_steer
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.settings import Scope
from dynamic_dpo.utils.settings import check_settings, documented, same_as, setting

if TYPE_CHECKING:
    from torch import Tensor


@documented()
@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the schedule ``beta_t = clip(beta_0 exp(c t))``, t counting updates after the warm-up."""

    beta_0: float = same_as(RiskConfig, "beta_0")
    drift_per_1000: float = setting(0.0, "Change of ln beta per 1,000 controller updates, 1,000 c.")
    beta_min: float = same_as(RiskConfig, "beta_min")
    beta_max: float = same_as(RiskConfig, "beta_max")
    warmup_steps: int = same_as(RiskConfig, "warmup_steps", ge=0)
    scope: Scope = same_as(RiskConfig, "scope")

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def matched_to(
        cls, risk: RiskConfig, pairs_per_update: int, *, drift_per_1000: float | str = "match"
    ) -> ScheduleConfig:
        """Return the schedule that moves within the bounds of ``risk``.

        Args:
            risk: The controller to stand in for.
            pairs_per_update: Pairs in a controller batch.
            drift_per_1000: The drift; ``"match"`` measures what mode ``paper`` of ``risk`` shows on noise with such
                batches (mode ``exact`` has none to match).
        """
        if drift_per_1000 == "match":
            # Here because it loads torch: see `dynamic_dpo.methods.table`.
            from dynamic_dpo.methods.risk.drift import null_drift

            drift_per_1000 = null_drift(replace(risk, mode="paper"), pairs_per_update).per_1000
        return cls(
            beta_0=risk.beta_0,
            drift_per_1000=float(drift_per_1000),
            beta_min=risk.beta_min,
            beta_max=risk.beta_max,
            warmup_steps=risk.warmup_steps,
            scope=risk.scope,
        )


@documented()
@dataclass(frozen=True)
class ScheduleSettings(RiskConfig):
    """What a file says of the schedule: its drift, and the risk controller that it stands in for."""

    drift_per_1000: float | Literal["match"] = setting(
        "match",
        "Change of ln beta per 1,000 controller updates; match: what method risk in mode paper shows on noise.",
    )


class Schedule(SteeringMethod):
    """A loss (by default DPO's, with ``label_smoothing``) whose beta follows a clock."""

    name = "schedule"
    Settings = ScheduleSettings
    neutral = ScheduleConfig(drift_per_1000=0.0, warmup_steps=0)

    def __init__(
        self,
        config: ScheduleConfig | None = None,
        *,
        label_smoothing: float = 0.0,
        loss: PreferenceMethod | None = None,
    ) -> None:
        self.config = config or ScheduleConfig()
        super().__init__(loss_to_steer(loss, self.config.beta_0, label_smoothing))
        self.scope = self.config.scope
        self.label_smoothing = label_smoothing
        self.updates = 0

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the clock as a run's settings describe it: within the bounds of the risk controller."""
        own = ScheduleSettings(**context.own)
        size = context.pairs_per_update(own.scope)
        risk = own.scaled_to(size, context.device_batch)
        matched = ScheduleConfig.matched_to(risk, size, drift_per_1000=own.drift_per_1000)
        return cls(matched, loss=context.loss)

    @property
    def beta(self) -> float:
        """Beta after the updates so far."""
        config = self.config
        elapsed = max(0, self.updates - config.warmup_steps)
        # Beyond 700 exp would overflow; every such beta is at its bound.
        growth = min(config.drift_per_1000 / 1000.0 * elapsed, 700.0)
        return min(max(config.beta_0 * math.exp(growth), config.beta_min), config.beta_max)

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Count one update; what the margins are changes nothing."""
        if finite_margins(evidence).numel():
            self.updates += 1
        return {"risk/beta": self.beta, "risk/warmup": float(self.updates <= self.config.warmup_steps)}

    def state_dict(self) -> State:
        """Return the update count."""
        return {"method": self.name, "version": 1, "loss": self.loss.name, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        check_state(state, {"method": self.name, "version": 1, "loss": self.loss.name})
        self.updates = int(state["updates"])

    def summary(self) -> dict[str, Any]:
        """Return name, scope, the drift and the steered loss."""
        return {
            "name": self.name,
            "scope": self.scope,
            "drift_per_1000": self.config.drift_per_1000,
            "loss": self.loss.summary(),
        }

    def start_notes(self, updates: int) -> list[str]:
        """Say what the clock is set to."""
        return [
            f"schedule: ln beta moves by {self.config.drift_per_1000:+.3f} per 1,000 updates after warm-up"
        ]
