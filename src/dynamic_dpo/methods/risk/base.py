"""What the modes of the risk controller have in common: what a test reads, remembers, and does to beta.

A mode is a file: a subclass of `RiskTest`, which sees finite margins, batch by batch, and beside it the same test on
many simulated chains at once. `modes` lists them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from dynamic_dpo.loss.risk import clip_beta, risk_test, tied_mid_p_score
from dynamic_dpo.methods.base import State
from dynamic_dpo.methods.risk.config import RiskConfig, RiskMode


class RiskReading(NamedTuple):
    """What the test saw in one controller batch.

    Attributes:
        tau: The threshold that the batch was tested against, nats.
        p_hat: Observed rate of exceedance, in [0, 1].
        u: Its standardised excess over delta.
        s: Its score, in [-1, 1].
    """

    tau: float
    p_hat: float
    u: float
    s: float


class RiskTest(ABC):
    """The test of one mode, and its memory.

    Args:
        config: The controller's settings, ``alpha_scale`` a number.
        pairs_per_update: Margins in a full controller batch.

    Attributes:
        mode: The mode's name.
        on_alarm: What an alarm of the monitor, or none, means in this mode; ends the sentence a run begins with.
        batches: Batches seen so far.
    """

    mode: ClassVar[RiskMode]
    on_alarm: ClassVar[str] = "its threshold is about the number of updates between false alarms"

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        self.config = config
        self.pairs_per_update = pairs_per_update
        self.batches = 0

    @abstractmethod
    def observe(self, margins: Tensor) -> RiskReading | None:
        """Take in one batch of finite margins (nats, shape [N], N ≥ 1); ``None`` while warming up."""

    def next_beta(self, beta: float, reading: RiskReading) -> float:
        """Return beta after ``reading``: ``clip(beta exp(alpha s), beta_min, beta_max)``."""
        config = self.config
        # Beyond 700 exp would overflow; every such beta is at its bound.
        step = max(-700.0, min(700.0, config.alpha * config.scale * reading.s))
        return clip_beta(beta * math.exp(step), config.beta_min, config.beta_max)

    @classmethod
    def known_drift(cls, config: RiskConfig) -> str | None:
        """Return what is known of beta on margins that carry no signal; ``None``: it has to be simulated."""
        return None

    def metrics(self, reading: RiskReading) -> dict[str, float]:
        """Return what is logged of a tested batch."""
        return {
            "risk/tau": reading.tau,
            "risk/p_hat": reading.p_hat,
            "risk/fail": float(risk_test(reading.p_hat, self.config.delta)),
            "risk/u": reading.u,
            "risk/s": reading.s,
        }

    @abstractmethod
    def state_dict(self) -> State:
        """Return the memory as JSON types; floats survive the round trip exactly."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def standardised(p_hat: float, delta: float, n: int) -> float:
    """Return the excess of ``p_hat`` over ``delta`` in standard deviations of a binomial share of ``n``."""
    return (p_hat - delta) / math.sqrt(delta * (1.0 - delta) / n)


def read_against(tau: float, margins: Tensor, delta: float) -> RiskReading:
    """Test a batch against a threshold that was fixed before it, with the mid-p score.

    Args:
        tau: The threshold, nats.
        margins: The batch. Shape [N].
        delta: Tolerated rate of exceedance.
    """
    n = margins.numel()
    values = margins.double()
    above, ties = int((values > tau).sum()), int((values == tau).sum())
    p_hat = (above + delta * ties) / n
    return RiskReading(tau, p_hat, standardised(p_hat, delta, n), tied_mid_p_score(above, ties, n, delta))
