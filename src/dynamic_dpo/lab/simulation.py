"""What controllers do on margins of a known law: drift on noise, response to a change, alarms of the monitor.

Many chains run at once (`dynamic_dpo.methods.risk.chains`) and follow the real controllers step by step. This module
asks the questions and adds up the answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.lab.alarms import AlarmCounter
from dynamic_dpo.lab.laws import MarginLaw, margin_law
from dynamic_dpo.lab.results import LAB_MODES, LabMode, Simulation, SimulationRow, Trace
from dynamic_dpo.lab.scenario import Scenario
from dynamic_dpo.methods.risk.chains import RiskChains
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.modes import CHAINS
from dynamic_dpo.methods.schedule import Schedule, ScheduleConfig
from dynamic_dpo.utils.settings import file_defaults

TRACE_POINTS = 200


def simulate(
    modes: Sequence[LabMode] = ("paper", "exact"),
    *,
    config: RiskConfig | None = None,
    n: Sequence[int] = (16,),
    law: str | MarginLaw = "normal",
    scenario: Scenario | None = None,
    updates: int = 1000,
    chains: int | None = None,
    seed: int = 0,
    bounded: bool = False,
) -> Simulation:
    """Run controllers on simulated margins, which do not answer to beta.

    Args:
        modes: Controllers to run: modes of the risk controller, ``schedule`` or ``fixed``.
        config: Settings; by default those of a file that says nothing. Without ``margin_budget`` mode
            ``target`` has the law's (1 - delta)-quantile for its budget. The monitor's rate and threshold hold
            whether it is on or not.
        n: Margins in a controller batch; each size is run.
        law: The margins' law; a name as `margin_law` takes it.
        scenario: How the law changes; by default not at all.
        updates: Updates after the warm-up.
        chains: Independent runs; by default as many as take a few seconds.
        seed: Seed of everything drawn.
        bounded: Whether the bounds of beta hold; without them drift can be read off.

    Returns:
        A row and a trace for each mode and batch size.

    Raises:
        ConfigError: If a setting is out of range.
        DataError: If ``law`` is a folder without margins.

    Example:
        >>> result = simulate(["exact"], n=[4], updates=200, chains=50)
        >>> abs(result.rows[0].drift_per_1000) < 0.1
        True
    """
    config = config or file_defaults(RiskConfig)
    scenario = scenario or Scenario()
    law = margin_law(law) if isinstance(law, str) else law
    sizes = [int(size) for size in n]
    for mode in modes:
        if mode not in LAB_MODES:
            raise ConfigError(f"mode must be one of {', '.join(LAB_MODES)}, got {mode!r}")
    if not sizes or min(sizes) < 1 or updates < 1 or (chains is not None and chains < 2):
        raise ConfigError(f"need n >= 1, updates >= 1 and chains >= 2, got n {sizes}, {updates}, {chains}")
    if scenario.changes and scenario.at >= updates:
        raise ConfigError(f"the change begins at update {scenario.at}, but there are {updates} updates")
    if "target" in modes and config.margin_budget is None:
        config = replace(config, margin_budget=law.quantile(1.0 - config.delta))
    config = replace(config, alpha_scale=config.scale)
    result = Simulation(law.name, scenario, updates, config)
    for size in sizes:
        num_chains = chains or max(8, min(128, 4_000_000 // (size * updates)))
        for mode in modes:
            settings = _Run(config, law, scenario, updates, num_chains, seed, bounded)
            row, trace = _run_one(mode, size, settings)
            result.rows.append(row)
            result.traces[f"{mode}, n = {size}"] = trace
    return result


@dataclass(frozen=True)
class _Run:
    config: RiskConfig
    law: MarginLaw
    scenario: Scenario
    updates: int
    chains: int
    seed: int
    bounded: bool


def _run_one(mode: LabMode, n: int, run: _Run) -> tuple[SimulationRow, Trace]:
    if mode == "schedule" or mode == "fixed":  # written out to narrow the type
        return _by_the_clock(mode, n, run)
    config = replace(run.config, mode=mode)
    draw = np.random.default_rng([run.seed, n])
    controller = CHAINS[config.mode](config, n, run.chains, seed=run.seed, bounded=run.bounded)
    controller.start(run.law.draw(draw, (run.chains, controller.pool_size)))
    alarms = AlarmCounter(config, run.chains, changes_at=run.scenario.at if run.scenario.changes else None)
    start, p_hats = controller.log_beta, []
    points = _TracePoints(run.updates)
    for update in range(run.updates):
        reading = controller.observe(run.scenario.apply(run.law.draw(draw, (run.chains, n)), update))
        assert reading is not None  # start() has filled every memory
        p_hats.append(float(reading.p_hat.mean()))
        alarms.observe(reading.p_hat, n, update)
        points.add(update, controller)
    moved = controller.log_beta - start
    row = SimulationRow(
        mode,
        n,
        run.chains,
        **_drift(moved, run.updates),
        beta_final=float(np.exp(controller.log_beta.mean())),
        spread=float(controller.log_beta.std(ddof=1)),
        p_hat=math.fsum(p_hats) / len(p_hats),
        **alarms.summary(run.updates),
    )
    return row, points.trace()


def _by_the_clock(mode: LabMode, n: int, run: _Run) -> tuple[SimulationRow, Trace]:
    """Return what needs no simulation: a beta that the margins do not move."""
    if mode == "fixed":
        clock = ScheduleConfig(beta_0=run.config.beta_0, beta_max=run.config.beta_max, warmup_steps=0)
    else:
        clock = replace(ScheduleConfig.matched_to(run.config, n), warmup_steps=0)
    rate = clock.drift_per_1000 / 1000.0
    method = Schedule(clock)
    trace = Trace([], [], [], [])
    for update in _trace_updates(run.updates):
        method.updates = update + 1
        log_beta = (
            math.log(max(method.beta, 1e-300))
            if run.bounded
            else math.log(clock.beta_0) + rate * (update + 1)
        )
        trace.updates.append(update + 1)
        for values in (trace.low, trace.median, trace.high):
            values.append(log_beta)
    moved = trace.median[-1] - math.log(clock.beta_0)
    row = SimulationRow(
        mode,
        n,
        run.chains,
        drift_per_1000=moved * 1000.0 / run.updates,
        standard_error=0.0,
        beta_final=math.exp(trace.median[-1]),
        spread=0.0,
    )
    return row, trace


def _drift(moved: NDArray[np.float64], updates: int) -> dict[str, Any]:
    per_1000 = moved * (1000.0 / updates)
    return {
        "drift_per_1000": float(per_1000.mean()),
        "standard_error": float(per_1000.std(ddof=1) / math.sqrt(len(per_1000))),
    }


def _trace_updates(updates: int) -> list[int]:
    return sorted({round(k) for k in np.linspace(0, updates - 1, min(TRACE_POINTS, updates))})


class _TracePoints:
    """Keeps percentiles of ln beta at some of the updates."""

    def __init__(self, updates: int) -> None:
        self.wanted = set(_trace_updates(updates))
        self.kept = Trace([], [], [], [])

    def add(self, update: int, controller: RiskChains) -> None:
        if update not in self.wanted:
            return
        low, median, high = np.quantile(controller.log_beta, [0.1, 0.5, 0.9])
        self.kept.updates.append(update + 1)
        self.kept.low.append(float(low))
        self.kept.median.append(float(median))
        self.kept.high.append(float(high))

    def trace(self) -> Trace:
        return self.kept
