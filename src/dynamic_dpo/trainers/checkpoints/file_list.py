"""The list of a checkpoint's files with sizes and SHA-256, written last: what has no valid list is no checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.files import sync_tree, write_json
from dynamic_dpo.utils.names import path_inside

FILE_LIST: Final = "manifest.json"
VERSION = 1


def write_file_list(folder: str | Path) -> Path:
    """Bring every file of ``folder`` to the disk, then write the list of them.

    Args:
        folder: A checkpoint, complete but for its list.

    Returns:
        The list's file.

    Raises:
        OSError: If the disk refuses it.
    """
    folder = Path(folder)
    (folder / FILE_LIST).unlink(missing_ok=True)
    sync_tree(folder)
    files = _describe(folder, [str(path.relative_to(folder)) for path in _files(folder)])
    return write_json(folder / FILE_LIST, {"version": VERSION, "files": files, "sha256": _digest(files)})


def fault_of(folder: str | Path) -> str | None:
    """Return why a checkpoint must not be used, or ``None`` if every byte is as it was written.

    Files that the list does not name are left out of account: nothing of a checkpoint is unnamed.
    """
    folder = Path(folder)
    try:
        content = (folder / FILE_LIST).read_bytes()
        found = json.loads(content)
        files = found["files"]
        if found["version"] != VERSION:
            return f"{FILE_LIST} has version {found['version']!r}, this program reads {VERSION}"
        if found["sha256"] != _digest(files) or not content.endswith(b"}\n"):
            return f"{FILE_LIST} is damaged"
        for name in files:
            path_inside(folder, name, what="a file of the checkpoint")
        sizes = {name: int(entry["size"]) for name, entry in files.items()}
        sums = {name: str(entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {FILE_LIST}: its writing was never finished, or another program wrote it"
    except OSError as error:
        return f"{FILE_LIST} cannot be read: {error.strerror}"
    except ConfigError as error:
        return f"{FILE_LIST} is not to be trusted: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{FILE_LIST} is damaged"
    for name in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != sizes[name]:
            return f"{name} has {size} bytes, not {sizes[name]}"
    try:
        present = _describe(folder, list(files))
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    wrong = [name for name in files if present[name]["sha256"] != sums[name]]
    return f"{wrong[0]} does not have the content it was written with" if wrong else None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _describe(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    def describe(name: str) -> dict[str, Any]:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"size": file.tell(), "sha256": digest}

    # Hashing runs without the interpreter's lock: four files at a time where there are cores.
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(describe, names), strict=True))


def _digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
