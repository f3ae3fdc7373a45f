"""Checkpoint folders on disk: staged, committed by one rename, found again, rotated.

A folder ``checkpoint-N`` exists only whole: it is filled under another name, listed (`file_list`) and renamed. Every
function is for the main process alone.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.runs.files import CHECKPOINT_PREFIX
from dynamic_dpo.trainers.checkpoints.file_list import fault_of, write_file_list
from dynamic_dpo.utils.files import sync

logger = logging.getLogger("dynamic_dpo")

# In the run's folder, so that the commit is a rename within one disk.
STAGING = ".checkpoint-in-progress"


def checkpoint_folders(run: str | Path) -> list[Path]:
    """Return a run's checkpoint folders, complete or not, the newest step first."""
    found = [
        path
        for path in Path(run).glob(f"{CHECKPOINT_PREFIX}*")
        if path.is_dir() and path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal()
    ]
    return sorted(found, key=_step, reverse=True)


def newest_complete(run: str | Path) -> Path | None:
    """Return a run's newest checkpoint that is whole, and say which newer ones were skipped and why.

    Returns:
        The folder, or ``None`` if the run has made no checkpoint yet.

    Raises:
        CheckpointError: If there are checkpoints and none of them is whole.
    """
    faults = []
    for folder in checkpoint_folders(run):
        fault = fault_of(folder)
        if fault is None:
            return folder
        faults.append(f"{folder.name}: {fault}")
        logger.warning("checkpoint %s is skipped: %s", folder, fault)
    if faults:
        raise CheckpointError(
            f"no checkpoint in {run} is whole ({'; '.join(faults)}): restore one from a copy, or start a new run"
        )
    return None


def check_complete(folder: str | Path) -> None:
    """Raise `CheckpointError` unless every byte of a checkpoint is as it was written."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"no checkpoint to resume from at {folder}")
    if fault := fault_of(folder):
        raise CheckpointError(
            f"the checkpoint {folder} cannot be used: {fault}. Resume from another one; resume=true takes the "
            "newest that is whole"
        )


def stage(run: str | Path) -> Path:
    """Return an empty folder in which the next checkpoint is built."""
    clean(run)
    staging = Path(run) / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def commit(run: str | Path, name: str) -> Path:
    """Make the staged checkpoint ``name`` the run's, all of it at once.

    Returns:
        Its final folder.

    Raises:
        OSError: If the disk refuses; the run's checkpoints are then those from before.
    """
    staged, final = Path(run) / STAGING / name, Path(run) / name
    write_file_list(staged)
    if final.exists():
        # A run that was resumed further back reaches this step again. `clean` puts the old one back if the next line
        # is the last that this process comes to.
        final.rename(staged.with_name(f"replaced-{name}"))
    staged.rename(final)
    sync(final.parent)
    shutil.rmtree(final.parent / STAGING, ignore_errors=True)
    return final


def clean(run: str | Path) -> None:
    """Remove what an interrupted commit left behind; a checkpoint that was about to be replaced returns."""
    staging = Path(run) / STAGING
    if not staging.is_dir():
        return
    for old in staging.glob(f"replaced-{CHECKPOINT_PREFIX}*"):
        final = staging.parent / old.name.removeprefix("replaced-")
        if not final.exists():
            old.rename(final)
            sync(staging.parent)
    shutil.rmtree(staging)


def set_aside_newer(checkpoint: str | Path) -> list[Path]:
    """Rename the run's checkpoints of later steps than the one a run goes on from: another future begins.

    They are damaged, or the user went back on purpose; left in place, the next resume would return to them.

    Returns:
        Their new folders.
    """
    checkpoint = Path(checkpoint)
    moved = []
    for path in checkpoint_folders(checkpoint.parent):
        if _step(path) <= _step(checkpoint):
            continue
        number = 1
        while (target := path.with_name(f"{path.name}.set-aside-{number}")).exists():
            number += 1
        path.rename(target)
        moved.append(target)
        logger.warning("%s is no longer part of this run: renamed to %s", path, target.name)
    return moved


def rotate(committed: Path, *, keep: int | None, best: str | Path | None = None) -> None:
    """Remove a run's oldest checkpoints beyond ``keep``, never the one just committed nor the best.

    Args:
        committed: The checkpoint just committed, and so known to be whole.
        keep: How many may stay; ``None`` or 0: all.
        best: A checkpoint that stays in any case.
    """
    if not keep:
        return
    spared = {committed.name, *([Path(best).name] if best else [])}
    found = checkpoint_folders(committed.parent)
    candidates = [path for path in found if path.name not in spared]
    room = max(0, keep - (len(found) - len(candidates)))
    for path in reversed(candidates[room:]):
        # Out of the way in one step: half a removed checkpoint must not look like one.
        staging = path.parent / STAGING
        staging.mkdir(exist_ok=True)
        path.rename(staging / f"rotated-{path.name}")
        shutil.rmtree(staging, ignore_errors=True)


def _step(path: Path) -> int:
    number = path.name.removeprefix(CHECKPOINT_PREFIX)
    return int(number) if number.isdecimal() else sys.maxsize
