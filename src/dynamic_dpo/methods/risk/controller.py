"""Risk-controlled DPO: a test on the margins' upper tail tightens or loosens beta while training runs.

This module is the controller: its one state, and the order of its steps. Its settings stand in `config`, each mode's
test in a file of its own, of which `paper` is the faithful one, and equations in `dynamic_dpo.loss.risk`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from dynamic_dpo.methods.base import (
    BuildContext,
    PreferenceMethod,
    State,
    check_state,
    finite_margins,
)
from dynamic_dpo.methods.building_blocks import SteeringMethod
from dynamic_dpo.methods.dpo import loss_to_steer
from dynamic_dpo.methods.risk.config import RiskConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dynamic_dpo.methods.risk.base import RiskReading
    from dynamic_dpo.methods.risk.monitor import Monitor

STATE_VERSION = 1

logger = logging.getLogger("dynamic_dpo")


class Risk(SteeringMethod):
    """A loss whose beta follows the risk test: too many large margins tighten the tie to the reference.

    Args:
        config: The controller's settings.
        pairs_per_update: Pairs in a full controller batch over all ranks; ``exact`` sizes its window by it.
        label_smoothing: Of the logistic loss, where ``loss`` is left out.
        loss: The method whose beta is moved; by default DPO.
        device_batch: Pairs that one device takes at once; only ``alpha_scale="auto"`` needs it.

    Attributes:
        stop_reason: Why the run should save and end, once a monitor in mode ``stop`` has raised its alarm.

    Raises:
        ConfigError: If the beta of ``loss`` cannot be moved by a controller, or the device batch is missing.
    """

    name = "risk"
    Settings = RiskConfig
    neutral = RiskConfig(alpha=0.0, warmup_steps=1)

    def __init__(
        self,
        config: RiskConfig | None = None,
        *,
        pairs_per_update: int = 16,
        label_smoothing: float = 0.0,
        loss: PreferenceMethod | None = None,
        device_batch: int | None = None,
    ) -> None:
        # Here because they load torch: see `dynamic_dpo.methods.table`.
        from dynamic_dpo.methods.risk.modes import TESTS
        from dynamic_dpo.methods.risk.monitor import Monitor

        config = config or RiskConfig()
        self.config = config.scaled_to(pairs_per_update, device_batch)
        self.scaled_by_itself = config.alpha_scale == "auto"
        super().__init__(loss_to_steer(loss, config.beta_0, label_smoothing))
        self.scope = config.scope
        self.pairs_per_update = pairs_per_update
        self.label_smoothing = label_smoothing
        self.updates = 0
        self._beta = config.beta_0
        self.test = TESTS[config.mode](self.config, pairs_per_update)
        self.monitor: Monitor | None = None if config.monitor == "off" else Monitor(self.config)

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the controller as a run's settings describe it."""
        config = RiskConfig(**context.own)
        size = context.pairs_per_update(config.scope)
        return cls(config, pairs_per_update=size, loss=context.loss, device_batch=context.device_batch)

    @property
    def beta(self) -> float:
        """The current beta."""
        return self._beta

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Test one controller batch and move beta; the losses of that batch used the beta from before."""
        margins = finite_margins(evidence)
        reading = None
        if margins.numel():
            self.updates += 1
            reading = self.test.observe(margins)
        metrics = {"risk/warmup": float(reading is None), "risk/delta": self.config.delta}
        if reading is not None:
            self._beta = self.test.next_beta(self._beta, reading)
            metrics |= {**self.test.metrics(reading), **self._watch(reading, margins.numel())}
        return {"risk/beta": self._beta, **metrics}

    def _watch(self, reading: RiskReading, n: int) -> dict[str, float]:
        if self.monitor is None:
            return {}
        if self.monitor.observe(p_hat=reading.p_hat, n=n):
            alarm = self.monitor.describe_alarm(update=self.updates, beta=self._beta)
            if self.config.monitor == "warn":
                logger.warning("%s", alarm)
            elif self.config.monitor == "stop":
                self.stop_reason = alarm
        return self.monitor.metrics()

    def state_dict(self) -> State:
        """Return beta, the update count and the test's state as JSON types."""
        state = {
            "method": self.name,
            "version": STATE_VERSION,
            "mode": self.config.mode,
            "loss": self.loss.name,
            "updates": self.updates,
            "beta": self._beta,
            "test": self.test.state_dict(),
        }
        return state if self.monitor is None else {**state, "monitor": self.monitor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; another method, mode, loss or version is a `CheckpointError`."""
        expected = {"method": self.name, "version": STATE_VERSION, "mode": self.config.mode}
        check_state(state, {**expected, "loss": self.loss.name})
        self.updates = int(state["updates"])
        self._beta = float(state["beta"])
        self.test.load_state_dict(state["test"])
        # A stopped run may be resumed: it was told. A monitor switched on or off since is no other controller.
        self.stop_reason = None
        if self.monitor is not None:
            fresh = type(self.monitor)(self.config).state_dict()
            self.monitor.load_state_dict(state.get("monitor", fresh))

    def summary(self) -> dict[str, Any]:
        """Return name, mode, scope, the steered loss, all settings, and the alarms where a monitor counts them."""
        alarms = {} if self.monitor is None else {"alarms": self.monitor.num_alarms}
        return {
            "name": self.name,
            "mode": self.config.mode,
            "scope": self.scope,
            "loss": self.loss.summary(),
            "settings": asdict(self.config),
            **alarms,
        }

    def start_notes(self, updates: int) -> list[str]:
        """Say how far beta would move on margins that carry no signal, and what was decided for the user."""
        from dynamic_dpo.methods.risk.drift import describe_monitor, describe_null_drift

        notes = [describe_null_drift(self.config, self.pairs_per_update, updates)]
        if self.scaled_by_itself:
            notes.append(
                f"alpha_scale auto: {self.config.scale:g}, the device batches in a controller batch of "
                f"{self.pairs_per_update} pairs; an update moves ln beta by at most "
                f"{self.config.alpha * self.config.scale:.4g} where a score moves it"
            )
        return [*notes, describe_monitor(self.config)] if self.monitor else notes
