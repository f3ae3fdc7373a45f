"""How far a controller moves beta on margins that carry no signal: measured by simulation, many chains at once.

Used for the read-out at the start of a run and to match the control arm ``schedule``. How a controller moves is
`risk_chains`' to know; other laws of margins and questions than this one are the lab's.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dynamic_dpo.loss.beta_binomial import reference_window

if TYPE_CHECKING:
    from dynamic_dpo.methods.risk.config import RiskConfig

# The first tau of a long warm-up on noise needs no more margins than this.
WARMUP_POOL = 8192


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
    import numpy as np

    from dynamic_dpo.methods.risk.chains import CHAINS

    draw = np.random.default_rng(seed)
    controller = CHAINS[config.mode](config, n, chains, seed=seed, bounded=False)
    pool = min(config.warmup_steps * n, WARMUP_POOL)
    if config.mode == "exact":
        pool = reference_window(n, config.delta, config.window_multiple).size
    controller.start(draw.standard_normal((chains, pool), dtype=np.float32))
    start = controller.log_beta
    for _ in range(updates):
        controller.observe(draw.standard_normal((chains, n), dtype=np.float32))
    per_1000 = (controller.log_beta - start) * (1000.0 / updates)
    return NullDrift(float(per_1000.mean()), float(per_1000.std(ddof=1) / math.sqrt(chains)))


def describe_null_drift(config: RiskConfig, n: int, updates: int) -> str:
    """Return the sentence that a run prints at its start about drift on noise."""
    settings = f"risk controller ({config.mode}, n = {n}, delta = {config.delta})"
    if config.mode == "exact":
        return f"{settings}: calibrated, no drift of beta is expected on margins that carry no signal"
    if config.mode == "target":
        return (
            f"{settings}: beta rises while more than a share {config.delta:g} of the margins exceeds "
            f"{config.margin_budget:g} nats and falls while fewer do; its drift is no matter of noise"
        )
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
    meaning = {
        "exact": "its threshold is about the number of updates between false alarms",
        "rm": "its threshold is about the number of updates between false alarms",
        "target": "its threshold is at least the mean number of updates to an alarm while no more than delta exceed "
        "the budget",
        "paper": "but mode paper tests a batch against a threshold that the batch has moved, and exceeds delta on "
        "noise: alarms are no evidence here. Use mode exact, rm or target",
    }[config.mode]
    return (
        f"monitor ({config.monitor}): looks for a rate of exceedance of {config.rate_to_detect:g} instead of "
        f"{config.delta:g}, threshold {config.monitor_threshold:g}; {meaning}"
    )
