"""The tests of the risk controller on many independent chains at once, for simulation.

The same margins give the same betas as the controller, one chain at a time, does; a test holds the two
together step by step. Where margins come from, and what is concluded, is not known here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dynamic_dpo.loss.beta_binomial import exceedance_scores, reference_window
from dynamic_dpo.loss.risk import mid_p_scores, quantile_gain, tied_mid_p_score
from dynamic_dpo.methods.risk.config import RiskConfig, RiskMode
from dynamic_dpo.methods.risk.rm import MIN_FOR_SPREAD, NORMAL_IQR

Floats = NDArray[np.float64]
Margins = NDArray[np.float32]
Keys = NDArray[np.int64]

DRAW_BITS = 31


class ChainReading(NamedTuple):
    """What each chain's test saw in a controller batch; every array has shape [C], as in `Reading`."""

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


class ExactChains(RiskChains):
    """Mode ``exact``: a rank of a sliding window, tested before the batch enters it."""

    def __init__(
        self, config: RiskConfig, pairs_per_update: int, chains: int, *, seed: int = 0, bounded: bool = True
    ) -> None:
        super().__init__(config, pairs_per_update, chains, seed=seed, bounded=bounded)
        self.plan = reference_window(pairs_per_update, config.delta, config.window_multiple)
        self.window: Keys = np.empty((chains, 0), dtype=np.int64)
        self.oldest = 0

    def _warm_up(self, margins: Margins) -> None:
        # The window may take longer to fill than the warm-up lasts.
        self._enter(self._keys(margins))

    def _test(self, margins: Margins) -> ChainReading | None:
        size, rank, chance_above = self.plan
        if self.window.shape[1] < size:
            return None
        n, keys = margins.shape[1], self._keys(margins)
        ranks = [rank, rank + 1] if chance_above else [rank]
        lowest = np.partition(self.window, [r - 1 for r in ranks], axis=1)[:, [r - 1 for r in ranks]]
        drawn = (self.draws.random(self.chains) < chance_above).astype(int) if chance_above else 0
        threshold = lowest[np.arange(self.chains), drawn]
        count = (keys > threshold[:, None]).sum(1)
        scores = np.array([exceedance_scores(n, size, r) for r in ranks])
        self._enter(keys)
        return ChainReading(margins_of(threshold), count / n, scores[drawn, count])

    def _enter(self, keys: Keys) -> None:
        size = self.plan.size
        if self.window.shape[1] < size:
            self.window = np.concatenate([self.window, keys], axis=1)[:, -size:].copy()
            return
        keys = keys[:, -size:]
        # A ring: order within the window is of no interest, only which margins are the oldest.
        self.window[:, (self.oldest + np.arange(keys.shape[1])) % size] = keys
        self.oldest = (self.oldest + keys.shape[1]) % size

    def _keys(self, margins: Margins) -> Keys:
        """Return integers in the order of the margins, with a uniform draw below the last bit to break ties."""
        bits = (margins + np.float32(0.0)).view(np.int32).astype(np.int64)  # -0 becomes 0: they are a tie
        ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        draws = self.draws.integers(0, 1 << DRAW_BITS, size=margins.shape, dtype=np.int64)
        return (ordered << DRAW_BITS) | draws


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
        reading = read_against(self.tau, margins, delta)
        self.tau = self.tau + self.eta * self.scale * (reading.p_hat - delta)
        recent = np.concatenate([self.recent, margins], axis=1)
        self.scale = (1.0 - momentum) * self.scale + momentum * spreads(
            recent[:, -max(MIN_FOR_SPREAD, margins.shape[1]) :]
        )
        self.recent = recent[:, -MIN_FOR_SPREAD:]
        return reading


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
        return read_against(self.tau, margins, self.config.delta)

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


CHAINS: dict[RiskMode, type[RiskChains]] = {
    "paper": PaperChains,
    "exact": ExactChains,
    "rm": RobbinsMonroChains,
    "target": TargetChains,
}


def quantiles(margins: Margins, q: float) -> Floats:
    """Return the quantile of each row, interpolated in float32 as the controller does. Shape [C]."""
    values = torch.from_numpy(margins)
    found: Floats = torch.quantile(values, q, dim=1).double().numpy()
    if not np.isfinite(found).all():
        found = torch.quantile(values.double(), q, dim=1).numpy()
    return found


def spreads(margins: Margins) -> Floats:
    """Return the interquartile range of each row over that of a standard normal law. Shape [C]."""
    levels = torch.tensor([0.25, 0.75], dtype=torch.float64)
    low, high = torch.quantile(torch.from_numpy(margins).double(), levels, dim=1)
    found: Floats = ((high - low) / NORMAL_IQR).numpy()
    return found


def read_against(tau: Floats, margins: Margins, delta: float) -> ChainReading:
    """Test a batch of each chain against thresholds fixed before it, with the mid-p score."""
    n = margins.shape[1]
    above = (margins > tau[:, None]).sum(1)
    ties = (margins == tau[:, None]).sum(1)
    s = np.array(mid_p_scores(n, delta))[above]
    for chain in np.flatnonzero(ties):
        s[chain] = tied_mid_p_score(int(above[chain]), int(ties[chain]), n, delta)
    return ChainReading(tau, (above + delta * ties) / n, s)


def margins_of(keys: Keys) -> Floats:
    """Return the margins that integers of `ExactChains` stand for."""
    ordered = keys >> DRAW_BITS
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return bits.view(np.float32).astype(np.float64)
