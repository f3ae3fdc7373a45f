"""The margins that a run has saved, update by update, read back with nothing left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.runs.files import MARGIN_LOG_FOLDER
from dynamic_dpo.runs.record import RunRecord, read_run

Margins = NDArray[np.float32]


def read_margins(run_dir: str | Path) -> list[Margins]:
    """Return the margins of every controller update of a run, in order; shape [n] each, NaN where not finite.

    Raises:
        DataError: If the folder is no run, or the margins of an update are missing or damaged.
    """
    return margins_of_run(read_run(run_dir))


def margins_of_run(run: RunRecord) -> list[Margins]:
    """Return the margins of every controller update of a run that was read already; see `read_margins`."""
    folder = margin_folder(run)
    found: dict[int, Path] = {}
    for path in folder.glob("epoch_*/step_*.npy"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal():
            found[int(number)] = path
    if not found:
        raise DataError(
            f"{run.folder} has no saved margins (looked for epoch_*/step_*.npy in {folder}): the run was made "
            "without a margin log, or the files were removed"
        )
    logged = [int(record["update"]) for record in run.controller if "update" in record]
    last = max([*found, *logged])
    missing = [number for number in range(1, last + 1) if number not in found]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        raise DataError(
            f"{folder} lacks the margins of {len(missing)} of {last} controller updates ({shown}): a controller "
            "remembers every batch, so that none can be left out"
        )
    return [_read(found[number]) for number in range(1, last + 1)]


def margin_folder(run: RunRecord) -> Path:
    """Return the folder of a run's margin log: where its summary says, or the customary one."""
    named = run.summary.get("margins_path")
    if isinstance(named, str):
        for path in (run.folder / named, Path(named)):
            if path.is_file():
                return path.parent
    return run.folder / MARGIN_LOG_FOLDER


def _read(path: Path) -> Margins:
    try:
        margins = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); the margin log is damaged") from error
    if margins.ndim != 1 or margins.dtype.kind != "f":
        raise DataError(
            f"{path} must hold one row of margins, got an array of {margins.dtype} and shape {margins.shape}"
        )
    return np.asarray(margins, dtype=np.float32)
