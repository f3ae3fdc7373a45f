"""The risk controller's settings, checked once: what holds after construction, every mode may rely on.

Which setting means what to which mode stands here; how a mode uses it stands in the mode's own module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.loss.risk import check_beta_bounds, check_delta
from dynamic_dpo.methods.base import Scope

RiskMode = Literal["paper", "exact", "rm", "target"]
MonitorMode = Literal["off", "report", "warn", "stop"]


@dataclass(frozen=True)
class RiskConfig:
    """Settings of the risk controller; symbols as in ``docs/method.md``.

    Attributes:
        delta: Tolerated rate of exceedance, in (0, 1).
        momentum: Rate at which old batches are forgotten, in [0, 1]: by tau (``paper``, ``rm``; ``lambda`` in YAML)
            or by the smoothed score (``target``).
        beta_0: Beta at the start, > 0.
        alpha: Largest step in ln beta of one update, ≥ 0. Not in mode ``target``, which has gains instead.
        gamma: Gain of the test statistic before tanh, > 0. Mode ``paper`` only.
        beta_min: Lower bound of beta.
        beta_max: Upper bound of beta.
        warmup_steps: Controller batches at the start during which beta stays at beta_0, ≥ 1.
        mode: ``paper`` (faithful), ``exact`` (calibrated: no drift on noise), ``rm`` (nearly calibrated, in constant
            memory) or ``target`` (holds the margins' upper tail at a level).
        scope: What a controller batch is: the device batch (``micro``) or the optimizer step (``step``).
        alpha_scale: Factor on alpha (on gain_i in ``target``), for a scope with fewer updates than the one they
            were chosen for; ``"auto"`` is the number of device batches, of all ranks, in a controller batch.
        window_multiple: Controller batches that the reference window spans. Mode ``exact`` only.
        seed: Seed of the draws that break ties. Mode ``exact`` only.
        margin_budget: The level tau*, in nats, that a share delta of margins may exceed. Mode ``target`` needs it,
            the others have none.
        gain_p: Proportional gain K_P of mode ``target``, ≥ 0.
        gain_i: Integral gain K_I of mode ``target``, per update, ≥ 0.
        monitor: What to do when the rate of exceedance has risen: nothing (``off``), count it (``report``), say so
            (``warn``), or save and ``stop``. See `dynamic_dpo.methods.risk.monitor`.
        monitor_rate: The rate of exceedance to detect, in (delta, 1); ``None``: the double of delta, or half-way
            from delta to 1 where that is less.
        monitor_threshold: Sum of evidence that raises the alarm, > 1; about the updates between false alarms.
    """

    delta: float = 0.1
    momentum: float = 0.05
    beta_0: float = 0.1
    alpha: float = 0.005
    gamma: float = 2.0
    beta_min: float = 0.0
    beta_max: float = 2.0
    warmup_steps: int = 120
    mode: RiskMode = "paper"
    scope: Scope = "micro"
    alpha_scale: float | Literal["auto"] = 1.0
    window_multiple: int = 20
    seed: int = 0
    margin_budget: float | None = None
    gain_p: float = 1.0
    gain_i: float = 0.005
    monitor: MonitorMode = "off"
    monitor_rate: float | None = None
    monitor_threshold: float = 5000.0

    def __post_init__(self) -> None:
        check_delta(self.delta)
        check_beta_bounds(self.beta_0, self.beta_min, self.beta_max)
        for key, choices in (
            ("mode", get_args(RiskMode)),
            ("scope", get_args(Scope)),
            ("monitor", get_args(MonitorMode)),
        ):
            if getattr(self, key) not in choices:
                listed = ", ".join(map(repr, choices))
                raise ConfigError(f"{key} must be one of {listed}, got {getattr(self, key)!r}")
        budget, rate, scale = self.margin_budget, self.monitor_rate, self.alpha_scale
        rules = {
            "momentum": (0 <= self.momentum <= 1, "lie in [0, 1]"),
            "alpha": (0 <= self.alpha < math.inf, "be a finite number >= 0"),
            "gamma": (0 < self.gamma < math.inf, "be a finite number > 0"),
            "alpha_scale": (
                scale == "auto" if isinstance(scale, str) else 0 < scale < math.inf,
                "be a finite number > 0, or 'auto'",
            ),
            "warmup_steps": (self.warmup_steps >= 1, "be at least 1"),
            "window_multiple": (self.window_multiple >= 2, "be at least 2"),
            "margin_budget": (budget is None or math.isfinite(budget), "be a finite number of nats, or None"),
            "gain_p": (0 <= self.gain_p < math.inf, "be a finite number >= 0"),
            "gain_i": (0 <= self.gain_i < math.inf, "be a finite number >= 0"),
            "monitor_rate": (rate is None or self.delta < rate < 1, f"lie in (delta, 1) = ({self.delta}, 1)"),
            "monitor_threshold": (1 < self.monitor_threshold < math.inf, "be a finite number > 1"),
        }
        for key, (holds, wanted) in rules.items():
            if not holds:
                raise ConfigError(f"{key} must {wanted}, got {getattr(self, key)!r}")
        if self.mode == "target" and budget is None:
            raise ConfigError(
                "mode 'target' needs margin_budget, in nats: the level that a share delta of the margins may exceed. "
                "The margin log of an earlier run shows what is usual"
            )

    @property
    def rate_to_detect(self) -> float:
        """The rate of exceedance that the monitor looks for, p1."""
        if self.monitor_rate is not None:
            return self.monitor_rate
        return min(2.0 * self.delta, (1.0 + self.delta) / 2.0)

    @property
    def scale(self) -> float:
        """The factor on alpha as a number.

        Raises:
            ConfigError: If it is still ``"auto"``.
        """
        if isinstance(self.alpha_scale, str):
            raise ConfigError(
                "alpha_scale 'auto' needs to know the device batch: give device_batch, the pairs that one device "
                "takes at once, or a number"
            )
        return self.alpha_scale

    def scaled_to(self, pairs_per_update: int, device_batch: int | None) -> RiskConfig:
        """Return the settings with ``alpha_scale`` a number.

        Args:
            pairs_per_update: Pairs in a controller batch, over all ranks.
            device_batch: Pairs that one device takes at once; only ``"auto"`` needs it.

        Raises:
            ConfigError: If it is needed and not given.

        Example:
            >>> RiskConfig(alpha_scale="auto").scaled_to(64, device_batch=16).scale
            4.0
        """
        if self.alpha_scale != "auto" or device_batch is None:
            return replace(self, alpha_scale=self.scale)
        return replace(self, alpha_scale=pairs_per_update / device_batch)
