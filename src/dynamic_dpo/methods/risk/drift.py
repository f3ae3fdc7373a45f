"""How far a controller moves beta on margins that carry no signal: measured by simulation, many chains at once.

Used for the sentences at the start of a run and to match the control arm ``schedule``; other laws of margins are
simulated in `dynamic_dpo.lab`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.modes import CHAINS, TESTS


class NullDrift(NamedTuple):
    """Mean change of ln beta per 1,000 updates on i.i.d. margins, and its standard error."""

    per_1000: float
    standard_error: float


def null_drift(
    config: RiskConfig, n: int, *, updates: int = 1000, chains: int | None = None, seed: int = 0
) -> NullDrift:
    """Simulate the controller on i.i.d. normal margins, bounds of beta left out.

    Args:
        config: The controller's settings.
        n: Margins in a controller batch.
        updates: Updates after the warm-up, per chain.
        chains: Independent chains; by default as many as cost well under a second.
        seed: Seed of the simulated margins.

    Returns:
        The drift per 1,000 updates with its standard error over chains.

    Raises:
        ValueError: If ``n``, ``updates`` or ``chains`` is too small.
    """
    if chains is None:
        chains = max(8, min(128, 4_000_000 // (n * updates)))
    if n < 1 or updates < 1 or chains < 2:
        raise ValueError(f"need n >= 1, updates >= 1, chains >= 2, got {n}, {updates}, {chains}")
    return _simulate(config, n, updates, chains, seed)


@lru_cache(maxsize=64)
def _simulate(config: RiskConfig, n: int, updates: int, chains: int, seed: int) -> NullDrift:
    draw = np.random.default_rng(seed)
    controller = CHAINS[config.mode](config, n, chains, seed=seed, bounded=False)
    controller.start(draw.standard_normal((chains, controller.pool_size), dtype=np.float32))
    start = controller.log_beta
    for _ in range(updates):
        controller.observe(draw.standard_normal((chains, n), dtype=np.float32))
    per_1000 = (controller.log_beta - start) * (1000.0 / updates)
    return NullDrift(float(per_1000.mean()), float(per_1000.std(ddof=1) / math.sqrt(chains)))


def describe_null_drift(config: RiskConfig, n: int, updates: int) -> str:
    """Return the sentence that a run prints at its start about drift on noise."""
    settings = f"risk controller ({config.mode}, n = {n}, delta = {config.delta})"
    if (known := TESTS[config.mode].known_drift(config)) is not None:
        return f"{settings}: {known}"
    drift = null_drift(config, n)
    active = max(0, updates - config.warmup_steps)
    # Beyond 700 exp would overflow; beta is at its bound long before.
    factor = math.exp(min(drift.per_1000 * active / 1000.0, 700.0))
    note = (
        f"{settings}: on margins that carry no signal ln beta moves by {drift.per_1000:+.2f} per 1,000 updates "
        f"(± {drift.standard_error:.2f}); over this run's {active} updates after warm-up that alone multiplies beta "
        f"by {factor:.4g}, within its bounds"
    )
    if config.mode == "paper":
        note += ". Compare with method.name=schedule, which has this drift and nothing else"
    return note


def describe_monitor(config: RiskConfig) -> str:
    """Return the sentence that a run prints at its start about the monitor."""
    return (
        f"monitor ({config.monitor}): looks for a rate of exceedance of {config.rate_to_detect:g} instead of "
        f"{config.delta:g}, threshold {config.monitor_threshold:g}; {TESTS[config.mode].on_alarm}"
    )
