"""Ordinary copies of ``.gguf`` models in the user's cache, so that only the first start pays for unpacking them.

Unpacking reads half a million values one by one in Python and dequantises every weight: twenty seconds for a model
that an ordinary folder gives back in two. The copy holds the same float32 weights bit for bit and the same
tokenizer.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock

from dynamic_dpo.utils.files import cache_folder, sync_tree, umask

logger = logging.getLogger(__name__)

# Of a .gguf file. Beyond it a copy takes more of the disk than the seconds are worth: its weights are float32.
LARGEST_FILE = 2**30
# What a copy may need: float32 is eight times four bits, and then some disk is to be left.
FREE_PER_BYTE = 12
# Seconds to wait for another process that makes the same copy.
LONGEST_WAIT = 300.0


def unpacked(file: Path, part: str, unpack: Callable[[Path], None], *, any_size: bool = False) -> Path | None:
    """Return the folder with an ordinary copy of a part of a ``.gguf`` file, making it if there is none.

    Copies are found by the file's content and the versions of the libraries that unpack it. They appear whole or
    not at all; of several processes one makes it and the others wait.

    Args:
        file: The ``.gguf`` file.
        part: Name of the part, such as ``model`` or ``tokenizer``.
        unpack: Writes the part into the empty folder it is given.
        any_size: Copy a large file too, where the disk has room: several processes would unpack it otherwise.

    Returns:
        The folder, or ``None`` where there can be no copy (a large file, a full or read-only disk, another process
        that takes minutes): read the file itself then.
    """
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE and not any_size:
            return None
        folder = cache_folder("gguf") / _identity(file)
        target = folder / part
        if target.is_dir():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        # The system gives up a killed process's lock.
        with FileLock(folder / f".{part}.lock", timeout=LONGEST_WAIT):
            if target.is_dir():
                return target
            for left_by_a_killed_one in folder.glob(f".{part}.*.tmp"):
                shutil.rmtree(left_by_a_killed_one, ignore_errors=True)
            if shutil.disk_usage(folder).free < FREE_PER_BYTE * size:
                return None
            _make(target, unpack)
        logger.info("the %s of %s is unpacked and kept for later starts: %s", part, file.name, target)
        return target
    except PackageNotFoundError:
        return None  # The package gguf is missing, as reading the file itself will say.
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder.
        logger.warning("no copy of %s is kept for later starts: %s", file, error)
        return None


def remove_copy(folder: Path) -> None:
    """Remove a copy that cannot be read, so that the next start makes it anew."""
    logger.warning("the copy %s cannot be read and is removed; the .gguf file is read instead", folder)
    shutil.rmtree(folder, ignore_errors=True)


def _make(target: Path, unpack: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        unpack(temporary)
        sync_tree(temporary)
        # mkdtemp makes folders private; copies are as readable as the user's other files.
        temporary.chmod(0o777 & ~umask())
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _identity(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(f"|gguf {version('gguf')}|transformers {version('transformers')}".encode())
    return digest.hexdigest()[:32]
