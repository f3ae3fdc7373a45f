"""What a training run left in its folder, read back for a report.

Every file but one may be missing: a run with a fixed beta has no controller, an interrupted one no summary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.runs.files import (
    ALARMS,
    CHECKPOINT_PREFIX,
    CONTROLLER,
    MARGIN_LOG_FOLDER,
    MARGINS,
    SAMPLES,
    SUMMARY,
    TRAINER_STATE,
)
from dynamic_dpo.runs.samples import samples_in
from dynamic_dpo.utils.json_lines import read_json_lines

Record = dict[str, Any]


class RunRecord(NamedTuple):
    """One run's numbers.

    Attributes:
        folder: Where they were read.
        summary: ``run_summary.json``; empty where the run did not end.
        history: The trainer's log, one object per report.
        margins: Statistics of the margins, one object per controller update.
        controller: The controller's readings, one object per update; empty for a fixed beta.
        alarms: The alarms of the log, one object each.
        samples: What the policy wrote while it was trained, one object a prompt and time.
    """

    folder: Path
    summary: Record
    history: list[Record]
    margins: list[Record]
    controller: list[Record]
    alarms: list[Record]
    samples: list[Record]

    def series(self, part: str, key: str) -> list[float]:
        """Return one number of every object of a part, NaN where it is missing or null.

        Args:
            part: ``history``, ``margins`` or ``controller``.
            key: The number's name.
        """
        return [as_number(record.get(key)) for record in getattr(self, part)]


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run's folder.

    Args:
        run_dir: The ``save_dir`` of a training run.

    Returns:
        Its record.

    Raises:
        DataError: If the folder is missing, holds no run, or one of its files is broken.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the save_dir of a training run")
    summary = _object(folder / SUMMARY)
    state = _object(_state_file(folder))
    margins = _lines(_logged(folder, summary, "margins_path", MARGINS))
    controller = _lines(_logged(folder, summary, "controller_path", CONTROLLER))
    if not (summary or state or margins or controller):
        raise DataError(
            f"{folder} holds no training run: none of {SUMMARY}, {TRAINER_STATE}, {MARGIN_LOG_FOLDER}/{MARGINS} is "
            "there; give the save_dir that the run was started with"
        )
    history = state.get("log_history", [])
    if not isinstance(history, list):
        raise DataError(
            f"{folder}: log_history in {TRAINER_STATE} must be a list, got {type(history).__name__}"
        )
    samples = samples_in(folder / SAMPLES) if (folder / SAMPLES).exists() else []
    return RunRecord(folder, summary, history, margins, controller, _lines(folder / ALARMS), samples)


def as_number(value: object) -> float:
    """Return a JSON value as a float; NaN for what is no number.

    >>> as_number(2), as_number(None), as_number("2")
    (2.0, nan, nan)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


def _state_file(folder: Path) -> Path:
    """Return the trainer's state: the run's own, else that of its last checkpoint."""
    own = folder / TRAINER_STATE
    if own.exists():
        return own
    numbered = [
        (int(number), path)
        for path in folder.glob(f"{CHECKPOINT_PREFIX}*")
        if (number := path.name.removeprefix(CHECKPOINT_PREFIX)).isdecimal()
        and (path / TRAINER_STATE).exists()
    ]
    return max(numbered)[1] / TRAINER_STATE if numbered else own


def _logged(folder: Path, summary: Record, key: str, default: str) -> Path:
    """Return a log's path: the summary's while it holds, the customary one where the folder has moved."""
    named = summary.get(key)
    if isinstance(named, str):
        for path in (folder / named, Path(named)):
            if path.is_file():
                return path
    return folder / MARGIN_LOG_FOLDER / default


def _object(path: Path) -> Record:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); the run's folder is damaged") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _lines(path: Path) -> list[Record]:
    return read_json_lines(path) if path.exists() else []
