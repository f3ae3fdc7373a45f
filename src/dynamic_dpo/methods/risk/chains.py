"""What the modes' simulated chains have in common: many independent controllers at once.

The same margins give the same betas as the controller, one chain at a time, does; a test holds the two together step
by step. Each mode's chains stand beside its test.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dynamic_dpo.loss.risk import mid_p_scores, tied_mid_p_score
from dynamic_dpo.methods.risk.config import RiskConfig

Floats = NDArray[np.float64]
Margins = NDArray[np.float32]

# The first tau of a long warm-up on noise needs no more margins than this.
WARMUP_POOL = 8192


class ChainReading(NamedTuple):
    """What each chain's test saw in a controller batch; every array has shape [C], as in `RiskReading`."""

    tau: Floats
    p_hat: Floats
    s: Floats


class RiskChains:
    """The memory of one mode's test for C chains, and their betas.

    Args:
        config: The controller's settings.
        pairs_per_update: Margins in a full controller batch.
        chains: Number C of chains.
        seed: Seed of what is drawn besides the margins.
        bounded: Whether the bounds of beta hold.

    Attributes:
        log_beta: ln beta of each chain. Shape [C].
    """

    def __init__(
        self, config: RiskConfig, pairs_per_update: int, chains: int, *, seed: int = 0, bounded: bool = True
    ) -> None:
        self.config = config if bounded else replace(config, beta_min=0.0)
        self.pairs_per_update = pairs_per_update
        self.chains = chains
        self.draws = np.random.default_rng([seed, 1])
        self.batches = 0
        self.low = math.log(config.beta_min) if bounded and config.beta_min > 0 else -math.inf
        self.high = math.log(config.beta_max) if bounded else math.inf
        self.log_beta: Floats = np.full(chains, math.log(config.beta_0))
        self.collected: list[Margins] = []

    def observe(self, margins: Margins) -> ChainReading | None:
        """Take in one batch of each chain (nats, float32, shape [C, n]); ``None`` while warming up."""
        self.batches += 1
        reading = self._test(margins) if self.batches > self.config.warmup_steps else None
        if reading is None:
            self._warm_up(margins)
            return None
        self.log_beta = self._move(reading)
        return reading

    @property
    def pool_size(self) -> int:
        """How many margins of each chain stand for its whole warm-up, see `start`."""
        return min(self.config.warmup_steps * self.pairs_per_update, WARMUP_POOL)

    def start(self, pool: Margins) -> None:
        """Take ``pool`` (shape [C, N]) for all that the warm-up collected, and end the warm-up."""
        self.batches = self.config.warmup_steps - 1
        self.observe(pool)

    def _test(self, margins: Margins) -> ChainReading | None:
        raise NotImplementedError

    def _warm_up(self, margins: Margins) -> None:
        """Collect a batch; after the warm-up's last one call `_begin` with all of them."""
        self.collected.append(margins)
        if self.batches == self.config.warmup_steps:
            self._begin(np.concatenate(self.collected, axis=1))
            self.collected = []

    def _begin(self, collected: Margins) -> None:
        """Set the test up from the margins of the warm-up; nothing to do where it has no threshold to find."""

    def _move(self, reading: ChainReading) -> Floats:
        step = self.config.alpha * self.config.scale
        return np.clip(self.log_beta + step * reading.s, self.low, self.high)


def quantiles(margins: Margins, q: float) -> Floats:
    """Return the quantile of each row, interpolated in float32 as the controller does. Shape [C]."""
    values = torch.from_numpy(margins)
    found: Floats = torch.quantile(values, q, dim=1).double().numpy()
    if not np.isfinite(found).all():
        found = torch.quantile(values.double(), q, dim=1).numpy()
    return found


def read_chains_against(tau: Floats, margins: Margins, delta: float) -> ChainReading:
    """Test a batch of each chain against thresholds fixed before it, with the mid-p score."""
    n = margins.shape[1]
    above = (margins > tau[:, None]).sum(1)
    ties = (margins == tau[:, None]).sum(1)
    s = np.array(mid_p_scores(n, delta))[above]
    for chain in np.flatnonzero(ties):
        s[chain] = tied_mid_p_score(int(above[chain]), int(ties[chain]), n, delta)
    return ChainReading(tau, (above + delta * ties) / n, s)
