"""What other controllers or settings would have done on a run's saved margins: betas side by side.

Margins are taken as they came: to which margins another beta would have led, only training shows. With its own
settings a run gives the betas of its own log, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.lab.margins import Margins, margins_of_run
from dynamic_dpo.lab.results import LAB_MODES, LabMode
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.dpo import DPO, DPOMethodConfig
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.methods.schedule import Schedule, ScheduleConfig
from dynamic_dpo.runs.files import CONFIG, SUMMARY
from dynamic_dpo.runs.record import RunRecord, read_run

OWN = "own"
# Methods whose log holds what a controller learns from; the others' evidence is no margin, or is not beta alone.
REPLAYABLE = ("risk", "schedule", "dpo")
# What can be tried without a setting that only the user can give.
WITHOUT_BUDGET = tuple(mode for mode in LAB_MODES if mode != "target")


@dataclass(frozen=True)
class ReplayTrace:
    """One controller's betas.

    Attributes:
        name: ``own (exact)`` or the mode.
        betas: After each update.
        taus: The threshold of each update in nats, ``None`` in warm-up and without a test.
        p_hats: The observed rate of exceedance, likewise.
        alarms: Alarms of the monitor, where one is on.
    """

    name: str
    betas: list[float]
    taus: list[float | None]
    p_hats: list[float | None]
    alarms: int | None = None

    @property
    def mean_p_hat(self) -> float | None:
        """The mean observed rate of exceedance."""
        rates = [rate for rate in self.p_hats if rate is not None]
        return math.fsum(rates) / len(rates) if rates else None


@dataclass(frozen=True)
class Replay:
    """The result of `replay`.

    Attributes:
        folder: The run.
        sizes: Margins of each update.
        pairs_per_update: Margins of a full controller batch.
        logged: Beta after each update as the run logged it; empty where it logged none.
        traces: The run's own settings first, then what was asked for.
    """

    folder: str
    sizes: list[int]
    pairs_per_update: int
    logged: list[float]
    traces: list[ReplayTrace] = field(default_factory=list)

    @property
    def deviation(self) -> float | None:
        """The largest difference between the run's own trace and its log: 0 where all is well."""
        if not self.logged:
            return None
        return max(abs(a - b) for a, b in zip(self.traces[0].betas, self.logged, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {**asdict(self), "deviation": self.deviation}


def replay(
    run_dir: str | Path,
    modes: Sequence[LabMode] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    own: RiskConfig | None = None,
    record: Mapping[str, Any] | None = None,
) -> Replay:
    """Feed a run's saved margins to other controllers.

    Args:
        run_dir: The folder of a run of method ``risk``, ``schedule`` or ``dpo`` with a margin log.
        modes: Controllers to try; by default ``settings`` on the run's own mode, or without settings all modes that
            need none.
        settings: Settings of `RiskConfig` over the run's own, for ``modes``.
        own: The settings of the risk controller in the run; by default as ``run_summary.json`` has them. A run of
            another method leaves none there.
        record: What the run's method says of itself, `PreferenceMethod.summary`; by default as the summary has it.

    Returns:
        The run's own trace and one for each mode.

    Raises:
        ConfigError: If a setting or mode is unknown or out of range.
        DataError: If the folder is no run, its method cannot be replayed, margins are missing, or its settings are
            not known.
    """
    run = read_run(run_dir)
    recorded = run.summary.get("method") or record or {}
    name = recorded.get("name", "risk")
    _check_replayable(run, name, recorded)
    batches = margins_of_run(run)
    size = int(run.summary.get("pairs_per_update") or max(len(batch) for batch in batches))
    base = _own_settings(run, recorded, own)
    arms = [_own_arm(name, recorded, base, size)]
    settings = dict(settings or {})
    if not modes:
        modes = (base.mode,) if settings else WITHOUT_BUDGET
    changed = with_settings(base, settings)
    arms += [(mode, build_arm(mode, changed, size)) for mode in modes]
    traces = [_feed(label, method, batches) for label, method in arms]
    logged = _logged_betas(run, len(batches))
    return Replay(str(run.folder), [len(batch) for batch in batches], size, logged, traces)


def with_settings(config: RiskConfig, settings: Mapping[str, Any]) -> RiskConfig:
    """Return ``config`` with some settings replaced.

    Raises:
        ConfigError: If a name is unknown or a value out of range.

    Example:
        >>> with_settings(RiskConfig(), {"delta": 0.05, "lambda": 0.2}).momentum
        0.2
    """
    # As in YAML, where the paper's symbol is used.
    settings = {"momentum" if key == "lambda" else key: value for key, value in settings.items()}
    known = {entry.name for entry in fields(RiskConfig)} - {"mode"}
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return replace(config, **settings)


def build_arm(mode: LabMode, config: RiskConfig, pairs_per_update: int) -> PreferenceMethod:
    """Return the controller that ``mode`` names, with the settings of ``config``.

    Raises:
        ConfigError: If there is no such mode, or it lacks a setting.
    """
    if mode not in LAB_MODES:
        raise ConfigError(f"mode must be one of {', '.join(LAB_MODES)}, got {mode!r}")
    if mode == "fixed":
        return DPO(DPOMethodConfig(beta=config.beta_0))
    if mode == "schedule":
        return Schedule(ScheduleConfig.matched_to(config, pairs_per_update))
    return Risk(replace(config, mode=mode), pairs_per_update=pairs_per_update)


def _check_replayable(run: RunRecord, name: str, recorded: Mapping[str, Any]) -> None:
    if name not in REPLAYABLE:
        raise DataError(
            f"{run.folder} is a run of method {name}, whose beta no controller of margins explains; replay takes "
            f"runs of {', '.join(REPLAYABLE)}"
        )
    loss = (recorded.get("loss") or {}).get("name", "dpo")
    if loss == "simpo":
        raise DataError(
            f"{run.folder} steered the beta of {loss}, whose evidence is a difference per token; it logs margins"
        )


def _own_settings(run: RunRecord, recorded: Mapping[str, Any], own: RiskConfig | None) -> RiskConfig:
    if own is not None:
        return replace(own, alpha_scale=own.scale)
    if settings := recorded.get("settings"):
        return RiskConfig(**settings)
    raise DataError(
        f"{run.folder} does not say what its controller's settings were: {SUMMARY} is missing (the run did not "
        f"end) or has none. Give them as `own`, or replay from the command line, which reads the run's {CONFIG}"
    )


def _own_arm(
    name: str, recorded: Mapping[str, Any], config: RiskConfig, size: int
) -> tuple[str, PreferenceMethod]:
    if name == "risk":
        return f"{OWN} ({config.mode})", Risk(config, pairs_per_update=size)
    if name == "dpo":
        return f"{OWN} (fixed)", build_arm("fixed", config, size)
    matched = ScheduleConfig.matched_to(config, size, drift_per_1000=recorded.get("drift_per_1000", "match"))
    return f"{OWN} (schedule)", Schedule(matched)


def _feed(name: str, method: PreferenceMethod, batches: Sequence[Margins]) -> ReplayTrace:
    trace = ReplayTrace(name, [], [], [])
    alarms = None
    for batch in batches:
        reading = method.observe(torch.from_numpy(batch.copy()))
        trace.betas.append(method.beta)
        trace.taus.append(reading.get("risk/tau"))
        trace.p_hats.append(reading.get("risk/p_hat"))
        alarms = int(reading["risk/alarms"]) if "risk/alarms" in reading else alarms
    return replace(trace, alarms=alarms)


def _logged_betas(run: RunRecord, updates: int) -> list[float]:
    """Return the betas of the log, or none where it does not cover every update."""
    betas = {int(record["update"]): record.get("beta") for record in run.controller if "update" in record}
    found = [betas.get(number) for number in range(1, updates + 1)]
    return [float(beta) for beta in found if beta is not None] if None not in found else []
