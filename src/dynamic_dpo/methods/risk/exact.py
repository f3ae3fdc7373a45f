"""The calibrated risk test of mode ``exact``: an order statistic of past margins, and a score of mean zero.

The threshold is a rank in a window of the last W margins, tested before the batch enters the window. The
count of exceedances then has a known law (`dynamic_dpo.loss.beta_binomial`), so that nothing drifts on noise.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dynamic_dpo.loss.beta_binomial import exceedance_scores, reference_window
from dynamic_dpo.methods.base import State, check_state
from dynamic_dpo.methods.risk.base import Reading, RiskTest, standardised
from dynamic_dpo.methods.risk.config import RiskConfig


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

    def observe(self, margins: Tensor) -> Reading | None:
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
            reading = Reading(self.tau, p_hat, u, exceedance_scores(n, size, rank)[count])
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
