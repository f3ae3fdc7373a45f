"""A file of JSON lines that only grows: each line is on the disk before the call that wrote it returns.

A line that a crash cut in two is moved aside on opening, and a lock keeps a second process out.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.files import sync


class PlacedRow(NamedTuple):
    """An object and the bytes of the file that it stands in."""

    row: dict[str, Any]
    start: int
    end: int


class JsonLinesFile:
    """JSON objects, one a line, read once on opening and appended from then on.

    Args:
        path: The file; it and its folders are made. A torn last line goes to ``PATH.torn``.
        keep: Keys that are held of the objects that are there; ``None`` for all. What nobody will read need not fill
            the memory.

    Attributes:
        rows: The objects that were there on opening, as far as they are held.

    Raises:
        DataError: If the file cannot be written or locked, another process has it open, or a line before the last is
            no JSON object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> with JsonLinesFile(path) as file:
        ...     file.append({"a": 1})
        >>> read_json_lines(path)
        [{'a': 1}]
    """

    def __init__(self, path: str | Path, *, keep: Collection[str] | None = None) -> None:
        self.path = Path(path)
        self._keep = keep
        self._lock = threading.Lock()
        self._file: int | None = _open(self.path)
        try:
            _lock_file(self._file, self.path)
            self.rows = self._read_and_repair(self._file)
            # The file's name, too, must survive a crash.
            sync(self.path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, row: dict[str, Any]) -> None:
        """Write one object and wait until the disk has it; several threads may call.

        Raises:
            OSError: If the disk refuses it; the file then ends with its last whole line.
        """
        self.append_all([row])

    def append_all(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write several objects and wait once until the disk has them all; see `append`."""
        lines = "".join(map(json_line, rows)).encode()
        with self._lock:
            if self._file is None:
                raise ValueError(f"{self.path} is closed")
            size = os.fstat(self._file).st_size
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except BaseException:
                os.ftruncate(self._file, size)
                raise

    def close(self) -> None:
        """Give the file and its lock back; closing twice does nothing."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read_and_repair(self, file: int) -> list[dict[str, Any]]:
        rows, whole = [], 0
        with self.path.open("rb") as content:
            for placed in _placed(content, self.path):
                rows.append(self._held(placed.row))
                whole = placed.end
            content.seek(whole)
            rest = content.read()
        if rest.strip():
            with open(f"{self.path}.torn", "ab") as torn:
                torn.write(rest + b"\n")
                torn.flush()
                os.fsync(torn.fileno())
            os.ftruncate(file, whole)
        elif whole and not self._ends_its_line(whole):
            # The line is whole and only its end is lost.
            os.write(file, b"\n")
        os.fsync(file)
        return rows

    def _held(self, row: dict[str, Any]) -> dict[str, Any]:
        return row if self._keep is None else {key: row[key] for key in self._keep if key in row}

    def _ends_its_line(self, end: int) -> bool:
        with self.path.open("rb") as content:
            content.seek(end - 1)
            return content.read(1) == b"\n"


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a file without locking or changing it; a torn last line is left out.

    Raises:
        DataError: If the file cannot be read or a line before the last is no JSON object.
    """
    return [placed.row for placed in iter_json_lines(path)]


def iter_json_lines(path: str | Path) -> Iterator[PlacedRow]:
    """Yield the objects of a file and where they stand, one line in memory at a time; see `read_json_lines`."""
    try:
        with open(path, "rb") as file:
            yield from _placed(file, Path(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def read_row(path: str | Path, start: int, end: int) -> dict[str, Any]:
    """Return the object that stands in these bytes of a file.

    Raises:
        DataError: If there is none: the file was changed.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            row = _object(file.read(end - start))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if row is None:
        raise DataError(f"{path} was changed while it was read: byte {start} begins no JSON object")
    return row


def _placed(file: BinaryIO, path: Path) -> Iterator[PlacedRow]:
    end, torn = 0, 0
    for number, line in enumerate(file, start=1):
        start, end = end, end + len(line)
        if not line.strip():
            continue
        if torn:
            raise DataError(
                f"line {torn} of {path} is no JSON object, and it is not the last, so no crash has "
                "torn it: restore the file, or delete that line and lose that one record"
            )
        row = _object(line)
        if row is None:
            torn = number
        else:
            yield PlacedRow(row, start, end)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    return row if isinstance(row, dict) else None


def json_line(row: dict[str, Any]) -> str:
    """Return an object as a line of JSON that any file can hold.

    Raises:
        ValueError: If it holds a number that JSON does not know.
    """
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, as models write them, exists in JSON's escapes only.
        text = json.dumps(row, allow_nan=False)
    return text + "\n"


def _lock_file(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            f"{path} is being written by another process: wait for it, stop it, or choose another output folder"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot lock {path} ({error.strerror}), so two runs could mix their lines: choose an output folder on a "
            "file system with locks"
        ) from None


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
