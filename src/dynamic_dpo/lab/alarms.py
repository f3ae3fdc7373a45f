"""The monitor on many chains at once, and how often it is wrong or late.

Follows `dynamic_dpo.methods.risk.monitor.Monitor` step by step; a test holds the two together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.methods.risk.config import RiskConfig


class AlarmCounter:
    """Adds up evidence in each chain and counts the alarms.

    Args:
        config: The controller's settings: delta, the rate to detect, the threshold.
        chains: Number C of chains.
        changes_at: The update at which the margins' law changes; ``None``: never.

    Attributes:
        log_sum: ``ln(1 + R)`` of each chain. Shape [C].
    """

    def __init__(self, config: RiskConfig, chains: int, *, changes_at: int | None = None) -> None:
        rate, delta = config.rate_to_detect, config.delta
        self.for_exceedance = math.log(rate / delta)
        self.for_none = math.log((1.0 - rate) / (1.0 - delta))
        self.log_threshold = math.log(config.monitor_threshold)
        self.changes_at = changes_at
        self.log_sum: NDArray[np.float64] = np.zeros(chains)
        self.num_alarms = 0
        self.num_before_change = 0
        self.first_after = np.full(chains, -1)

    def observe(self, p_hat: NDArray[np.float64], n: int, update: int) -> NDArray[np.bool_]:
        """Take in the tested batches of all chains (shape [C]) and return which raise the alarm."""
        count = p_hat * n
        reached = self.log_sum + count * self.for_exceedance + (n - count) * self.for_none
        alarm: NDArray[np.bool_] = reached >= self.log_threshold
        self.log_sum = np.where(alarm, 0.0, np.logaddexp(0.0, reached))
        self.num_alarms += int(alarm.sum())
        if self.changes_at is None or update < self.changes_at:
            self.num_before_change += int(alarm.sum())
        else:
            self.first_after[alarm & (self.first_after < 0)] = update
        return alarm

    def summary(self, updates: int) -> dict[str, Any]:
        """Return the alarms' part of a `SimulationRow` after ``updates`` updates."""
        quiet = updates if self.changes_at is None else self.changes_at
        before = self.num_before_change
        summary: dict[str, Any] = {
            "alarms": self.num_alarms,
            "updates_per_alarm": quiet * len(self.log_sum) / before if before else None,
        }
        if self.changes_at is not None:
            late = self.first_after[self.first_after >= 0]
            summary["detected"] = len(late) / len(self.log_sum)
            summary["delay"] = float((late - self.changes_at + 1).mean()) if len(late) else None
        return summary
