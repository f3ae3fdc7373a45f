"""The test of mode ``rm``: the threshold is found by stochastic approximation, in constant memory.

After Robbins and Monro (1951, "A stochastic approximation method"): a batch is tested first, then tau moves
towards the level that a share delta of margins exceeds. Nearly calibrated, without the window of mode ``exact``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamic_dpo.loss.risk import quantile_gain
from dynamic_dpo.methods.base import State
from dynamic_dpo.methods.risk.base import RiskReading, RiskTest, read_against
from dynamic_dpo.methods.risk.chains import (
    ChainReading,
    Floats,
    Margins,
    RiskChains,
    quantiles,
    read_chains_against,
)
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.utils.quantile import WarmupQuantileAccumulator

NORMAL_IQR = 1.349  # of a standard normal law
# A batch of two has no quartiles: the spread is taken over at least this many of the latest margins.
MIN_FOR_SPREAD = 16


class RobbinsMonroTest(RiskTest):
    """Tests a batch against tau, then ``tau ← tau + eta · scale · (p_hat - delta)``.

    ``eta`` is `quantile_gain` of momentum and delta; ``scale`` follows the margins' interquartile range / 1.349
    at the rate momentum. A margin on tau itself is an exceedance with probability delta.

    Args:
        config: The controller's settings.
        pairs_per_update: Margins in a full controller batch.
    """

    mode = "rm"

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        super().__init__(config, pairs_per_update)
        self.eta = quantile_gain(config.momentum, config.delta)
        self.warmup = WarmupQuantileAccumulator(1.0 - config.delta)
        self.tau: float | None = None
        self.scale = 0.0
        self.recent = torch.empty(0)

    def observe(self, margins: Tensor) -> RiskReading | None:
        """Take in one batch of finite margins; ``None`` while warming up."""
        self.batches += 1
        self.recent = torch.cat([self.recent, margins])[-max(MIN_FOR_SPREAD, len(margins)) :]
        if self.tau is None:
            self.warmup.update(margins)
            if self.batches >= self.config.warmup_steps:
                self.scale = spread(torch.cat(self.warmup.batches))
                self.tau = self.warmup.finalize()
                self.warmup = WarmupQuantileAccumulator(1.0 - self.config.delta)
            self._trim()
            return None
        reading = read_against(self.tau, margins, self.config.delta)
        self.tau += self.eta * self.scale * (reading.p_hat - self.config.delta)
        momentum = self.config.momentum
        self.scale = (1.0 - momentum) * self.scale + momentum * spread(self.recent)
        self._trim()
        return reading

    def _trim(self) -> None:
        self.recent = self.recent[-MIN_FOR_SPREAD:]

    def metrics(self, reading: RiskReading) -> dict[str, float]:
        """Return the reading and the margins' scale."""
        return {**super().metrics(reading), "risk/scale": self.scale}

    def state_dict(self) -> State:
        """Return threshold, scale, the latest margins, and those of an unfinished warm-up."""
        return {
            "batches": self.batches,
            "tau": self.tau,
            "scale": self.scale,
            "recent": self.recent.tolist(),
            "warmup": [batch.tolist() for batch in self.warmup.batches],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.batches = int(state["batches"])
        self.tau = None if state["tau"] is None else float(state["tau"])
        self.scale = float(state["scale"])
        self.recent = torch.tensor(state["recent"], dtype=torch.float32)
        self.warmup = WarmupQuantileAccumulator(1.0 - self.config.delta)
        for batch in state["warmup"]:
            self.warmup.update(torch.tensor(batch, dtype=torch.float32))


def spread(margins: Tensor) -> float:
    """Return the interquartile range over that of a standard normal law; 0 for a single margin.

    Example:
        >>> round(spread(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])), 3)
        1.483
    """
    low, high = torch.quantile(margins[: 2**24].double(), torch.tensor([0.25, 0.75], dtype=torch.float64))
    return float(high - low) / NORMAL_IQR


class RobbinsMonroChains(RiskChains):
    """Mode ``rm``: tau moves by stochastic approximation after each test."""

    def __init__(
        self, config: RiskConfig, pairs_per_update: int, chains: int, *, seed: int = 0, bounded: bool = True
    ) -> None:
        super().__init__(config, pairs_per_update, chains, seed=seed, bounded=bounded)
        self.eta = quantile_gain(config.momentum, config.delta)

    def _begin(self, collected: Margins) -> None:
        self.tau = quantiles(collected, 1.0 - self.config.delta)
        self.scale = spreads(collected)
        self.recent = collected[:, -MIN_FOR_SPREAD:]

    def _test(self, margins: Margins) -> ChainReading:
        delta, momentum = self.config.delta, self.config.momentum
        reading = read_chains_against(self.tau, margins, delta)
        self.tau = self.tau + self.eta * self.scale * (reading.p_hat - delta)
        recent = np.concatenate([self.recent, margins], axis=1)
        self.scale = (1.0 - momentum) * self.scale + momentum * spreads(
            recent[:, -max(MIN_FOR_SPREAD, margins.shape[1]) :]
        )
        self.recent = recent[:, -MIN_FOR_SPREAD:]
        return reading


def spreads(margins: Margins) -> Floats:
    """Return the interquartile range of each row over that of a standard normal law. Shape [C]."""
    levels = torch.tensor([0.25, 0.75], dtype=torch.float64)
    low, high = torch.quantile(torch.from_numpy(margins).double(), levels, dim=1)
    found: Floats = ((high - low) / NORMAL_IQR).numpy()
    return found
