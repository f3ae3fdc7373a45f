"""Writing files so that a crash, a full disk or a cut of power leaves the old content or the new, never half."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def cache_folder(name: str) -> Path:
    """Return a folder of the user's cache, not made yet; the variable ``DYNAMIC_DPO_CACHE`` moves the cache."""
    moved = os.environ.get("DYNAMIC_DPO_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamic-dpo"
    return (Path(moved) if moved else base) / name


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` to ``path`` through a temporary file, synced and renamed; folders are made.

    A crash leaves the old content or the new, never half of it.
    """
    with replacing(path) as file:
        file.write(text)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of ``path``, whole, when the block ends; folders are made.

    After an error in the block, as after a crash, the old content is there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a run's records are as readable as any other file of the user.
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    # The new name is on the disk only once its folder is.
    sync(target.parent)


def sync(path: str | Path) -> None:
    """Wait until the disk has a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | Path) -> None:
    """Wait until the disk has every file and folder below ``folder``, and the folder itself."""
    # Files first: a name must not outlive its content.
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                sync(path)
    sync(folder)


# Reasons for which a disk refuses a write, none of them a fault of the program.
_REFUSALS = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "the quota is used up: free some space, or choose a folder on another disk",
    errno.EFBIG: "the file would exceed the size allowed: raise the limit, or choose a folder on another disk",
    errno.EROFS: "the disk is mounted read-only: choose another folder",
    errno.EACCES: "grant the permission, or choose another folder",
    errno.EPERM: "grant the permission, or choose another folder",
    errno.EIO: "the disk itself failed: look at the machine's log, and choose another disk",
}


def write_refused(error: BaseException) -> str | None:
    """Return what to do about an error that a disk's refusal to write explains, or ``None`` for any other error.

    Writers in other languages (torch, safetensors) report a refusal under their own types; they are recognised by
    what they say.

    Example:
        >>> write_refused(OSError(28, "No space left on device"))
        'free some space, or choose a folder on another disk'
        >>> write_refused(KeyError("x")) is None
        True
    """
    if isinstance(error, OSError):
        return _REFUSALS.get(error.errno or 0)
    message = str(error)
    if isinstance(error, MemoryError | KeyboardInterrupt) or not isinstance(error, Exception):
        return None
    for number, advice in _REFUSALS.items():
        if os.strerror(number) in message:
            return advice
    if "PytorchStreamWriter" in message or "file write failed" in message or "unexpected pos" in message:
        return "look whether the disk is full or the folder writable"
    return None


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity become ``null``."""
    return write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value


def umask() -> int:
    """Return the process's file mode creation mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
