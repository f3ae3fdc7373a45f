"""What the modes of the risk controller have in common: what a test reads, remembers, and does to beta.

A mode is a subclass of `RiskTest`, one file each (``paper`` stands in `risk`). It sees finite margins, batch by
batch; losses, ranks and the trainer are not known here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from dynamic_dpo.loss.risk import clip_beta
from dynamic_dpo.methods.base import State
from dynamic_dpo.methods.risk.config import RiskConfig, RiskMode


class Reading(NamedTuple):
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
        batches: Batches seen so far.
    """

    mode: ClassVar[RiskMode]

    def __init__(self, config: RiskConfig, pairs_per_update: int) -> None:
        self.config = config
        self.pairs_per_update = pairs_per_update
        self.batches = 0

    @abstractmethod
    def observe(self, margins: Tensor) -> Reading | None:
        """Take in one batch of finite margins (nats, shape [N], N ≥ 1); ``None`` while warming up."""

    def next_beta(self, beta: float, reading: Reading) -> float:
        """Return beta after ``reading``: ``clip(beta exp(alpha s), beta_min, beta_max)``."""
        config = self.config
        # Beyond 700 exp would overflow; every such beta is at its bound.
        step = max(-700.0, min(700.0, config.alpha * config.scale * reading.s))
        return clip_beta(beta * math.exp(step), config.beta_min, config.beta_max)

    def details(self) -> dict[str, float]:
        """Return what this mode logs beside the reading."""
        return {}

    @abstractmethod
    def state_dict(self) -> State:
        """Return the memory as JSON types; floats survive the round trip exactly."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def standardised(p_hat: float, delta: float, n: int) -> float:
    """Return the excess of ``p_hat`` over ``delta`` in standard deviations of a binomial share of ``n``."""
    return (p_hat - delta) / math.sqrt(delta * (1.0 - delta) / n)
