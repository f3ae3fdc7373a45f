"""Alarms while a run goes on: said once, kept in the run's folder, and where it is asked for an end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dynamic_dpo.runs.alarms import Alarm, AlarmConfig, AlarmWatch
from dynamic_dpo.runs.files import ALARMS
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.json_lines import json_line

logger = logging.getLogger("dynamic_dpo")


class RunAlarms(TrainerCallback):  # type: ignore[misc]
    """Holds every log entry against the thresholds. All ranks see the same entries and come to the same end.

    Args:
        config: The thresholds.

    Attributes:
        stop_reason: Why the run should end, once an alarm has been raised and alarms end it.
    """

    def __init__(self, config: AlarmConfig | None = None) -> None:
        self.config = config or AlarmConfig()
        self.stop_reason: str | None = None
        self._watch = AlarmWatch(self.config)

    @property
    def raised(self) -> list[Alarm]:
        """The alarms so far, those before a resume included."""
        return self._watch.raised

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read what was logged before a resume; what it has raised is known, and ends nothing again."""
        self._watch = AlarmWatch(self.config)
        self.stop_reason = None
        for entry in state.log_history:
            self._watch.see(entry)
        self._write(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hold the newest entry against the thresholds."""
        new = self._watch.see(state.log_history[-1]) if state.log_history else []
        for alarm in new:
            logger.warning("alarm at step %d: %s", alarm.step, alarm.sentence)
            if self.config.action == "stop":
                self.stop_reason = self.stop_reason or f"alarm at step {alarm.step}: {alarm.sentence}"
        if new:
            self._write(args, state)

    def _write(self, args: Any, state: Any) -> None:
        path = Path(args.output_dir) / ALARMS
        if state.is_world_process_zero and (self.raised or path.exists()):
            write_text(path, "".join(json_line(alarm._asdict()) for alarm in self.raised))
