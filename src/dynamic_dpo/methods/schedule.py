"""The control arm ``schedule``: beta grows by a fixed rate, blind to the margins.

Set to the drift that a risk controller shows on noise, it separates what the controller's sensing gains from
what its drift alone would have done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from torch import Tensor

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.loss.risk import check_beta_bounds, clip_beta
from dynamic_dpo.methods.base import (
    BuildContext,
    PreferenceMethod,
    Scope,
    State,
    check_state,
    finite_margins,
)
from dynamic_dpo.methods.building_blocks import SteeringMethod
from dynamic_dpo.methods.dpo import loss_to_steer
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.drift import null_drift


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the schedule ``beta_t = clip(beta_0 exp(c t))``, t counting updates after the warm-up.

    Attributes:
        beta_0: Beta at the start, > 0.
        drift_per_1000: Change of ln beta per 1,000 controller updates, 1,000 c.
        beta_min: Lower bound of beta.
        beta_max: Upper bound of beta.
        warmup_steps: Updates during which beta stays at beta_0.
        scope: What a controller batch is, as in `RiskConfig`.
    """

    beta_0: float = 0.1
    drift_per_1000: float = 0.0
    beta_min: float = 0.0
    beta_max: float = 2.0
    warmup_steps: int = 120
    scope: Scope = "micro"

    def __post_init__(self) -> None:
        check_beta_bounds(self.beta_0, self.beta_min, self.beta_max)
        if not math.isfinite(self.drift_per_1000):
            raise ConfigError(f"drift_per_1000 must be a finite number, got {self.drift_per_1000}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if self.scope not in ("micro", "step"):
            raise ConfigError(f"scope must be 'micro' or 'step', got {self.scope!r}")

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
            drift_per_1000 = null_drift(replace(risk, mode="paper"), pairs_per_update).per_1000
        return cls(
            beta_0=risk.beta_0,
            drift_per_1000=float(drift_per_1000),
            beta_min=risk.beta_min,
            beta_max=risk.beta_max,
            warmup_steps=risk.warmup_steps,
            scope=risk.scope,
        )


@dataclass(frozen=True)
class ScheduleSettings:
    """What the section ``schedule`` of a file says; the rest of `ScheduleConfig` is the risk controller's."""

    drift_per_1000: float | Literal["match"] = field(
        default="match",
        metadata={
            "description": "Change of ln beta per 1,000 controller updates; match: what method risk in mode paper "
            "shows on noise."
        },
    )


class Schedule(SteeringMethod):
    """A loss (by default DPO's, with ``label_smoothing``) whose beta follows a clock."""

    name = "schedule"
    Settings = ScheduleSettings

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
        size = context.pairs_per_update(context.risk.scope)
        own = ScheduleSettings(**context.own)
        risk = context.risk.scaled_to(size, context.device_batch)
        matched = ScheduleConfig.matched_to(risk, size, drift_per_1000=own.drift_per_1000)
        return cls(matched, loss=context.loss)

    @property
    def beta(self) -> float:
        """Beta after the updates so far."""
        config = self.config
        elapsed = max(0, self.updates - config.warmup_steps)
        # Beyond 700 exp would overflow; every such beta is at its bound.
        growth = min(config.drift_per_1000 / 1000.0 * elapsed, 700.0)
        return clip_beta(config.beta_0 * math.exp(growth), config.beta_min, config.beta_max)

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
