"""The risk controller's settings, each stated once: what holds after construction, every mode may rely on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.settings import Scope
from dynamic_dpo.utils.settings import check_settings, documented, setting

# Each has its test and its simulated chains in a file of its own: see `modes`.
RiskMode = Literal["paper", "exact", "rm", "target"]
MonitorMode = Literal["off", "report", "warn", "stop"]


@documented()
@dataclass(frozen=True)
class RiskConfig:
    """Settings of the risk controller; symbols as in ``docs/method.md``, keys as a file names them."""

    delta: float = setting(
        0.1, "Tolerated share of margins that reach the threshold tau.", key="risk_test.delta", gt=0, lt=1
    )
    momentum: float = setting(
        0.05,
        "Rate at which tau follows the latest controller batches (modes paper and rm), or the smoothed score does "
        "(target).",
        key="risk_test.lambda",
        # Files follow the paper, Python the code that the stored traces were made with.
        in_files=0.1,
        ge=0,
        le=1,
    )
    beta_0: float = setting(0.1, "Beta at the start.", key="beta_update.beta_0", gt=0)
    alpha: float = setting(0.005, "Largest change of ln beta in one update.", key="beta_update.alpha", ge=0)
    gamma: float = setting(
        2.0, "Gain of the test statistic before tanh (mode paper).", key="beta_update.gamma", gt=0
    )
    beta_min: float = setting(0.0, "Lower bound of beta.", key="beta_update.beta_min", ge=0, at_most="beta_0")
    beta_max: float = setting(
        2.0, "Upper bound of beta.", key="beta_update.beta_max", gt=0, at_least="beta_0"
    )
    warmup_steps: int = setting(
        120,
        "Controller batches from which the first tau is found; until then beta is beta_0.",
        key="risk_test.beta_warmup",
        ge=1,
    )
    mode: RiskMode = setting(
        "paper",
        "Test of method risk: faithful (paper), calibrated so that beta does not drift on noise (exact), nearly so "
        "in constant memory (rm), or against a fixed margin budget (target).",
        key="method.mode",
    )
    scope: Scope = setting(
        "micro",
        "What the controller sees at once: a device batch (micro), or all pairs of the optimizer step over all ranks "
        "(step).",
        key="method.scope",
    )
    alpha_scale: float | Literal["auto"] = setting(
        1.0,
        "Factor on beta_update.alpha, in mode target on risk_target.gain_i, e.g. for the fewer updates of scope "
        "step; auto: the device batches, of all devices, in a controller batch.",
        key="method.alpha_scale",
        gt=0,
    )
    window_multiple: int = setting(
        20,
        "Mode exact: the reference window spans at least this many controller batches.",
        key="method.window_multiple",
        ge=2,
    )
    seed: int = setting(0, "Mode exact: seed of the draws that break ties.", key="method.seed", ge=0)
    margin_budget: float | None = setting(
        None,
        "The margin in nats, without beta, that a share risk_test.delta of the pairs may exceed; mode target needs "
        "it. The margin log of an earlier run shows what is usual.",
        key="risk_target.margin_budget",
        needed_by=("mode", "target"),
    )
    gain_p: float = setting(
        1.0, "Gain on the smoothed score: ln beta per unit.", key="risk_target.gain_p", ge=0
    )
    gain_i: float = setting(
        0.005,
        "Gain on the sum of the smoothed scores: ln beta per unit and update.",
        key="risk_target.gain_i",
        ge=0,
    )
    monitor: MonitorMode = setting(
        "off",
        "On an alarm: count it in the logs (report), also warn, or save a checkpoint and stop. Alarms mean nothing "
        "in mode paper.",
        key="monitor.mode",
    )
    monitor_rate: float | None = setting(
        None,
        "The rate of exceedance to detect, above delta; null: twice delta, at most half-way to 1.",
        key="monitor.rate",
        gt=0,
        lt=1,
        above="delta",
    )
    monitor_threshold: float = setting(
        5000.0,
        "Evidence that raises the alarm; about the least mean number of updates between false alarms.",
        key="monitor.threshold",
        gt=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)

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
