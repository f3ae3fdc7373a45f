"""Mode ``target``: holds the margins' upper tail at a level, where the other modes sense how fast it moves.

The user gives a margin budget tau*; a proportional-integral controller raises beta while more than a share
delta of the margins exceeds it, and lowers beta while fewer do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from dynamic_dpo.loss.risk import clip_beta
from dynamic_dpo.methods.base import State, check_state
from dynamic_dpo.methods.risk.base import RiskReading, RiskTest, read_against
from dynamic_dpo.methods.risk.chains import ChainReading, Floats, Margins, RiskChains, read_chains_against
from dynamic_dpo.methods.risk.config import RiskConfig


class TargetTest(RiskTest):
    """Tests each batch against the budget; ``ln beta = clip(ln beta_0 + K_P e + K_I Σe)``.

    ``e`` is the mid-p score, smoothed at the rate momentum. The sum stands still while beta is at a bound and
    ``e`` would push it further: it would have to be unwound before beta could leave the bound again.

    Args:
        config: The controller's settings.
        pairs_per_update: Margins in a full controller batch.
    """

    mode = "target"
    on_alarm = (
        "its threshold is at least the mean number of updates to an alarm while no more than delta exceed the "
        "budget"
    )

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        super().__init__(config, pairs_per_update)
        assert config.margin_budget is not None  # RiskConfig sees to it
        self.tau = config.margin_budget
        self.error = 0.0
        self.integral = 0.0

    @classmethod
    def known_drift(cls, config: RiskConfig) -> str:
        """Say what is held instead."""
        return (
            f"beta rises while more than a share {config.delta:g} of the margins exceeds {config.margin_budget:g} "
            "nats and falls while fewer do; its drift is no matter of noise"
        )

    def observe(self, margins: Tensor) -> RiskReading | None:
        """Take in one batch of finite margins; ``None`` while warming up, when margins start from 0."""
        self.batches += 1
        if self.batches <= self.config.warmup_steps:
            return None
        return read_against(self.tau, margins, self.config.delta)

    def next_beta(self, beta: float, reading: RiskReading) -> float:
        """Return beta after ``reading``; the present one plays no part."""
        config, momentum = self.config, self.config.momentum
        self.error = (1.0 - momentum) * self.error + momentum * reading.s
        wanted = self._log_beta(self.integral + self.error)
        low = math.log(config.beta_min) if config.beta_min > 0 else -math.inf
        high = math.log(config.beta_max)
        pushes_out = (wanted > high and self.error > 0) or (wanted < low and self.error < 0)
        if not pushes_out:
            self.integral += self.error
        # exp underflows to 0 and overflows to an error beyond 700; both lie outside any bounds of use.
        exponent = max(-700.0, min(700.0, self._log_beta(self.integral)))
        return clip_beta(math.exp(exponent), config.beta_min, config.beta_max)

    def _log_beta(self, integral: float) -> float:
        config = self.config
        gain_i = config.gain_i * config.scale
        return math.log(config.beta_0) + config.gain_p * self.error + gain_i * integral

    def metrics(self, reading: RiskReading) -> dict[str, float]:
        """Return the reading, the smoothed score and its sum."""
        return {**super().metrics(reading), "risk/error": self.error, "risk/integral": self.integral}

    def state_dict(self) -> State:
        """Return the batch counter, the smoothed score and its sum, and the budget they belong to."""
        return {
            "batches": self.batches,
            "margin_budget": self.tau,
            "error": self.error,
            "integral": self.integral,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; a sum for another budget is a `CheckpointError`."""
        check_state(state, {"margin_budget": self.tau})
        self.batches = int(state["batches"])
        self.error = float(state["error"])
        self.integral = float(state["integral"])


class TargetChains(RiskChains):
    """Mode ``target``: a proportional-integral controller against a fixed budget."""

    def __init__(
        self, config: RiskConfig, pairs_per_update: int, chains: int, *, seed: int = 0, bounded: bool = True
    ) -> None:
        super().__init__(config, pairs_per_update, chains, seed=seed, bounded=bounded)
        assert config.margin_budget is not None  # RiskConfig sees to it
        self.tau = np.full(chains, config.margin_budget)
        self.error = np.zeros(chains)
        self.integral = np.zeros(chains)

    def _test(self, margins: Margins) -> ChainReading:
        return read_chains_against(self.tau, margins, self.config.delta)

    def _move(self, reading: ChainReading) -> Floats:
        momentum = self.config.momentum
        self.error = (1.0 - momentum) * self.error + momentum * reading.s
        wanted = self._wanted(self.integral + self.error)
        pushes_out = ((wanted > self.high) & (self.error > 0)) | ((wanted < self.low) & (self.error < 0))
        self.integral = np.where(pushes_out, self.integral, self.integral + self.error)
        return np.clip(self._wanted(self.integral), self.low, self.high)

    def _wanted(self, integral: Floats) -> Floats:
        config = self.config
        gain_i = config.gain_i * config.scale
        return math.log(config.beta_0) + config.gain_p * self.error + gain_i * integral
