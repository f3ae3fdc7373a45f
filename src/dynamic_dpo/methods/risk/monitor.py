"""The monitor: tells from counts of exceedances when their rate has risen, with a known rate of false alarms.

A Shiryaev–Roberts sum of e-values, kept in logarithms: an e-detector (Shin, Ramdas and Rinaldo, 2022,
"E-detectors: a nonparametric framework for sequential change detection").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dynamic_dpo.loss.risk import log_e_value
from dynamic_dpo.methods.base import State
from dynamic_dpo.methods.risk.config import RiskConfig


class Monitor:
    """Adds up evidence that the rate of exceedance is p1 instead of delta, and starts again after an alarm.

    With ``e_t = (p1/delta)^k ((1 - p1)/(1 - delta))^(n - k)`` the sum is ``R_t = (1 + R_{t-1}) e_t``. Where each
    e_t has mean at most 1 given the past, R grows by at most 1 an update on average, and so takes at least
    ``threshold`` updates on average to reach the threshold.

    Args:
        config: The controller's settings: delta, the rate to detect, the threshold.

    Attributes:
        num_alarms: Alarms so far.
        log_sum: ``ln(1 + R)``, 0 at the start.

    Example:
        >>> monitor = Monitor(RiskConfig(monitor="report"))
        >>> [monitor.observe(p_hat=0.5, n=16) for _ in range(2)]
        [False, True]
    """

    def __init__(self, config: RiskConfig) -> None:
        self.config = config
        self.num_alarms = 0
        self.log_sum = 0.0
        self.reached = 0.0

    def observe(self, *, p_hat: float, n: int) -> bool:
        """Take in one tested batch and return whether it raises the alarm.

        Args:
            p_hat: Observed rate of exceedance of a threshold that was fixed before the batch.
            n: Margins in the batch.
        """
        config = self.config
        evidence = log_e_value(p_hat * n, n, config.delta, config.rate_to_detect)
        self.reached = self.log_sum + evidence
        alarm = self.reached >= math.log(config.monitor_threshold)
        self.num_alarms += alarm
        # ln(1 + R), written so that neither a large nor a small R is lost.
        self.log_sum = 0.0 if alarm else max(self.reached, 0.0) + math.log1p(math.exp(-abs(self.reached)))
        return alarm

    def metrics(self) -> dict[str, float]:
        """Return ``ln R`` of the last update, to be held against ``ln threshold``, and the alarms so far."""
        return {"risk/monitor": self.reached, "risk/alarms": float(self.num_alarms)}

    def describe_alarm(self, *, update: int, beta: float) -> str:
        """Return the sentence that tells of an alarm at ``update``."""
        config = self.config
        return (
            f"update {update}: the rate of exceedance has risen from the tolerated {config.delta:g} towards "
            f"{config.rate_to_detect:g} or beyond (alarm {self.num_alarms}; beta {beta:.4g}): the largest margins "
            "grow faster than before, or lie above the budget"
        )

    def state_dict(self) -> State:
        """Return the sum and the count of alarms."""
        return {"num_alarms": self.num_alarms, "log_sum": self.log_sum, "reached": self.reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.num_alarms = int(state["num_alarms"])
        self.log_sum = float(state["log_sum"])
        self.reached = float(state["reached"])
