"""The calibrated risk test of mode ``exact``: an order statistic of past margins, and a score of mean zero.

The threshold is a rank in a window of the last W margins, tested before the batch enters the window. The
count of exceedances then has a known law (`dynamic_dpo.loss.beta_binomial`), so that nothing drifts on noise.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynamic_dpo.loss.beta_binomial import exceedance_scores, reference_window
from dynamic_dpo.methods.base import State, check_state
from dynamic_dpo.methods.risk.base import RiskReading, RiskTest, standardised
from dynamic_dpo.methods.risk.chains import ChainReading, Floats, Margins, RiskChains
from dynamic_dpo.methods.risk.config import RiskConfig

Keys = NDArray[np.int64]

DRAW_BITS = 31


class ExactTest(RiskTest):
    """Tests a batch against the window, then lets the batch in and the oldest margins out.

    Ties are broken by a uniform draw attached to every margin, seeded by the number of the batch: the same
    on every rank and after a resume.

    Args:
        config: The controller's settings.
        pairs_per_update: Margins in a full controller batch; sizes the window. Shorter batches are tested
            under the law for their own size.
    """

    mode = "exact"

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        super().__init__(config, pairs_per_update)
        self.window_plan = reference_window(pairs_per_update, config.delta, config.window_multiple)
        self.window: list[tuple[float, float]] = []
        self.tau: float | None = None

    @classmethod
    def known_drift(cls, config: RiskConfig) -> str:
        """Say that there is none."""
        return "calibrated, no drift of beta is expected on margins that carry no signal"

    def observe(self, margins: Tensor) -> RiskReading | None:
        """Take in one batch of finite margins; ``None`` until warm-up is over and the window is full."""
        self.batches += 1
        # A string seed is hashed with SHA-512 by the standard library: stable over processes and versions.
        draws = random.Random(f"{self.config.seed}:{self.batches}")
        size, rank, chance_above = self.window_plan
        if chance_above and draws.random() < chance_above:
            rank += 1
        batch = [(margin, draws.random()) for margin in margins.tolist()]

        reading = None
        if self.batches > self.config.warmup_steps and len(self.window) == size:
            threshold = sorted(self.window)[rank - 1]
            n = len(batch)
            count = sum(item > threshold for item in batch)
            p_hat = count / n
            u = standardised(p_hat, self.config.delta, n)
            self.tau = threshold[0]
            reading = RiskReading(self.tau, p_hat, u, exceedance_scores(n, size, rank)[count])
        self.window = (self.window + batch)[-size:]
        return reading

    def state_dict(self) -> State:
        """Return the batch counter and the window with its tie-breaking draws."""
        return {
            "size": self.window_plan.size,
            "batches": self.batches,
            "tau": self.tau,
            "window": [list(item) for item in self.window],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; a window of another size is a `CheckpointError`."""
        check_state(state, {"size": self.window_plan.size})
        self.batches = int(state["batches"])
        self.tau = None if state["tau"] is None else float(state["tau"])
        self.window = [(float(margin), float(draw)) for margin, draw in state["window"]]


class ExactChains(RiskChains):
    """Mode ``exact``: a rank of a sliding window, tested before the batch enters it."""

    def __init__(
        self, config: RiskConfig, pairs_per_update: int, chains: int, *, seed: int = 0, bounded: bool = True
    ) -> None:
        super().__init__(config, pairs_per_update, chains, seed=seed, bounded=bounded)
        self.plan = reference_window(pairs_per_update, config.delta, config.window_multiple)
        self.window: Keys = np.empty((chains, 0), dtype=np.int64)
        self.oldest = 0

    @property
    def pool_size(self) -> int:
        """The window is what has to be filled."""
        return self.plan.size

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


def margins_of(keys: Keys) -> Floats:
    """Return the margins that integers of `ExactChains` stand for."""
    ordered = keys >> DRAW_BITS
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return bits.view(np.float32).astype(np.float64)
