"""Mode ``paper``, the faithful one: tau follows the batches' quantiles, and tanh squashes the statistic.

The test as training runs it, then on many chains at once, as simulations do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamic_dpo.loss.risk import empirical_over_threshold_proportion, risk_statistic
from dynamic_dpo.methods.base import State
from dynamic_dpo.methods.risk.base import RiskReading, RiskTest
from dynamic_dpo.methods.risk.chains import ChainReading, Margins, RiskChains, quantiles
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.utils.quantile import EMAUpdate, WarmupQuantileAccumulator


class PaperTest(RiskTest):
    """The faithful test: tau follows the batches' quantiles, the statistic is squashed by tanh."""

    mode = "paper"
    on_alarm = (
        "but mode paper tests a batch against a threshold that the batch has moved, and exceeds delta on noise: "
        "alarms are no evidence here. Use mode exact, rm or target"
    )

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        super().__init__(config, pairs_per_update)
        self.warmup = WarmupQuantileAccumulator(1.0 - config.delta)
        self.threshold: EMAUpdate | None = None

    @property
    def tau(self) -> float | None:
        """The threshold in nats; ``None`` before the warm-up's last batch."""
        return self.threshold.tau if self.threshold else None

    def observe(self, margins: Tensor) -> RiskReading | None:
        """Take in one batch of finite margins; ``None`` while warming up."""
        config = self.config
        self.batches += 1
        if self.threshold is None:
            self.warmup.update(margins)
            if self.batches >= config.warmup_steps:
                self._start(self.warmup.finalize())
            return None
        # The batch enters tau before it is tested against it: that is the faithful order.
        tau = self.threshold.update_tau(margins)
        p_hat = empirical_over_threshold_proportion(margins, tau)
        return RiskReading(tau, p_hat, *risk_statistic(p_hat, config.delta, margins.numel(), config.gamma))

    def _start(self, tau: float) -> None:
        self.threshold = EMAUpdate(tau, 1.0 - self.config.delta, self.config.momentum)
        self.warmup = WarmupQuantileAccumulator(1.0 - self.config.delta)

    def state_dict(self) -> State:
        """Return counters, threshold and the margins of an unfinished warm-up."""
        return {
            "batches": self.batches,
            "tau": self.tau,
            "warmup": [batch.tolist() for batch in self.warmup.batches],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.warmup, self.threshold = WarmupQuantileAccumulator(1.0 - self.config.delta), None
        self.batches = int(state["batches"])
        for batch in state["warmup"]:
            self.warmup.update(torch.tensor(batch, dtype=torch.float32))
        if state["tau"] is not None:
            self._start(float(state["tau"]))


class PaperChains(RiskChains):
    """Mode ``paper``: tau follows the batches' quantiles, the statistic is squashed by tanh."""

    def _begin(self, collected: Margins) -> None:
        self.tau = quantiles(collected, 1.0 - self.config.delta)

    def _test(self, margins: Margins) -> ChainReading:
        delta, momentum, n = self.config.delta, self.config.momentum, margins.shape[1]
        self.tau = (1.0 - momentum) * self.tau + momentum * quantiles(margins, 1.0 - delta)
        # The controller compares and averages in float32.
        reached = margins >= self.tau[:, None].astype(np.float32)
        p_hat = (reached.sum(1).astype(np.float32) / np.float32(n)).astype(np.float64)
        u = (p_hat - delta) / math.sqrt(delta * (1.0 - delta) / n)
        return ChainReading(self.tau, p_hat, np.tanh(self.config.gamma * u))
