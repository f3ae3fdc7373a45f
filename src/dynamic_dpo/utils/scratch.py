"""The scratch folder of a process: removed when the process ends, and by a later one where it was killed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

_PREFIX = "dynamic-dpo-"
# Held as long as the process lives; the system gives up a killed one's.
_LOCK = ".in-use"
# Younger folders may not have their lock yet.
_SECONDS_UNTIL_LEFT = 60.0


class _Scratch(NamedTuple):
    folder: Path
    lock: FileLock


_scratch: dict[
    int, _Scratch
] = {}  # By process, so that a forked child neither uses nor removes its parent's.


def scratch_path(stem: str) -> Path:
    """Return a new file name in this process's scratch folder, which is removed when the process ends.

    The folder is made in the system's temporary folder; set ``TMPDIR`` to have it elsewhere. What killed processes
    of the same user have left there is removed first.
    """
    process = os.getpid()
    if process not in _scratch:
        _remove_left_folders(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = FileLock(folder / _LOCK)
        lock.acquire()
        _scratch[process] = _Scratch(folder, lock)
        atexit.register(_remove_scratch, process)
    return _scratch[process].folder / f"{stem}-{uuid.uuid4().hex}.arrow"


def _remove_scratch(process: int) -> None:
    if process == os.getpid():
        folder, lock = _scratch.pop(process)
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_left_folders(parent: Path) -> None:
    for lock_file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        folder = lock_file.parent
        with suppress(OSError, Timeout):  # Another's, still in use, or just removed.
            if time.time() - folder.stat().st_mtime < _SECONDS_UNTIL_LEFT or not os.access(folder, os.W_OK):
                continue
            with FileLock(lock_file, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
