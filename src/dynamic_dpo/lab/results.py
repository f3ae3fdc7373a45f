"""What a simulation gives: numbers for each controller and batch size, and the course of its beta."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from dynamic_dpo.lab.scenario import Scenario
from dynamic_dpo.methods.risk.config import RiskConfig, RiskMode

# Betas that the margins do not move stand beside the modes of the risk controller.
ByTheClock = Literal["schedule", "fixed"]
LabMode = RiskMode | ByTheClock
LAB_MODES: tuple[LabMode, ...] = (*get_args(RiskMode), *get_args(ByTheClock))


@dataclass(frozen=True)
class SimulationRow:
    """One controller at one batch size.

    Attributes:
        mode: The controller's mode, ``schedule`` or ``fixed``.
        n: Margins in a controller batch.
        chains: Independent runs.
        drift_per_1000: Mean change of ln beta per 1,000 updates, warm-up left out.
        standard_error: Of the drift, over chains.
        beta_final: Beta at the end, geometric mean over chains.
        spread: Standard deviation over chains of ln beta at the end.
        p_hat: Mean observed rate of exceedance; ``None`` without a test.
        alarms: Alarms of the monitor over all chains; ``None`` without a test.
        updates_per_alarm: Updates of all chains over alarms, before any change; ``None`` where there was none.
        detected: Share of chains with an alarm after the change; ``None`` where nothing changes.
        delay: Mean updates from the change to the first alarm after it, over those chains.
    """

    mode: LabMode
    n: int
    chains: int
    drift_per_1000: float
    standard_error: float
    beta_final: float
    spread: float
    p_hat: float | None = None
    alarms: int | None = None
    updates_per_alarm: float | None = None
    detected: float | None = None
    delay: float | None = None


@dataclass(frozen=True)
class Trace:
    """ln beta of one controller over its updates: median and 10th and 90th percentile over chains."""

    updates: list[int]
    low: list[float]
    median: list[float]
    high: list[float]


@dataclass(frozen=True)
class Simulation:
    """The result of `simulate`.

    Attributes:
        law: Name of the margins' law.
        scenario: How it changes.
        updates: Updates after the warm-up.
        config: The settings all controllers share.
        rows: One for each batch size and controller.
        traces: ln beta by ``"mode, n = 16"``.
    """

    law: str
    scenario: Scenario
    updates: int
    config: RiskConfig
    rows: list[SimulationRow] = field(default_factory=list)
    traces: dict[str, Trace] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self)
