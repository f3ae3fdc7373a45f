"""What an experiment has found so far: a file that only grows, a line per result, found again by its key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Lines by key, in a file that is only ever appended to.

    Args:
        path: The file; made, with its folder, at the first line.

    Attributes:
        path: The file.
        lines: Each line by its ``key``. A line that an interruption cut off does not count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue  # the line that an interruption cut off
                self.lines[line["key"]] = line

    def line(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the line of a key, computed and written if it is not there yet.

        Args:
            key: A hash of everything that decides the result.
            compute: Returns the line, ``key`` among its entries.
        """
        if key not in self.lines:
            text = json.dumps(compute(), ensure_ascii=False)
            self._append(text)
            # As it would be read again: tuples are lists, so that a resumed experiment sees the same.
            self.lines[key] = json.loads(text)
        return self.lines[key]

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A line that was cut off has no end: the new one must not be glued to it.
        torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + text + "\n")
            file.flush()
            os.fsync(file.fileno())
