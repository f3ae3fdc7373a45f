"""JSON files row by row, in flat memory: one object a line, or one array of objects; gzip or not.

Rows are found, not understood: each comes back as the bytes that were written, so that a broken line is one
row's problem. Only a file that is damaged as a whole (cut-off gzip, broken array) is an error here.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from dynamic_dpo.errors import DataError

_CHUNK: Final = 1 << 20
_BLANK: Final = " \t\r\n"


def read_json_rows(path: Path) -> Iterator[bytes]:
    """Yield the rows of a JSON or JSON Lines file, undecoded and without blank lines.

    Args:
        path: The file. A name ending in ``.gz`` is decompressed. A content that begins with ``[`` is read as
            one array, anything else as one row a line.

    Yields:
        The bytes of one row. Lines are not checked; elements of an array are valid JSON.

    Raises:
        DataError: If the file cannot be read or decompressed, or an array is broken or cut off.
    """
    num_rows = 0
    try:
        with _open(path) as file:
            rows = _array_elements(file, path) if _opens_array(file) else _lines(file)
            for row in rows:
                num_rows += 1
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} cannot be read beyond row {num_rows}: {error}. Fetch or write the file again"
        ) from error


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _opens_array(file: IO[bytes]) -> bool:
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    for line in file:
        row = line.removeprefix(b"\xef\xbb\xbf").strip()
        if row:
            yield row


def _array_elements(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Decode one element at a time from a window that slides over the file."""
    decoder = json.JSONDecoder()
    window = _Window(file)
    window.skip("[")
    num_rows = 0
    while not window.at("]"):
        try:
            element, end = decoder.raw_decode(window.text, window.position)
            # An element at the window's end may go on behind it: "1." there is read as 1, but begins 1.5.
            if window.text[end : end + 1] not in (*_BLANK, ",", "]") and window.grow():
                continue
        except (ValueError, RecursionError) as error:
            if window.grow():
                continue
            raise DataError(
                f"{str(path)!r} is a JSON array that is broken or cut off in element {num_rows}: {error}. "
                "Repair it, or write one object a line (.jsonl): there a broken row costs only itself"
            ) from error
        yield json.dumps(element).encode()
        num_rows += 1
        window.position = end
        if window.at(","):
            window.skip(",")
        elif not window.at("]"):
            raise DataError(f"{str(path)!r} is a JSON array without ',' or ']' after element {num_rows - 1}")


class _Window:
    """A moving piece of a text file with the place reached in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._characters = _decode(file)
        self.text = ""
        self.position = 0

    def grow(self) -> bool:
        """Forget what is behind, append the next chunk; False at the end of the file."""
        chunk = next(self._characters, "")
        self.text = self.text[self.position :] + chunk
        self.position = 0
        return bool(chunk)

    def at(self, character: str) -> bool:
        """Skip blanks, then tell whether the next character is this one."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _BLANK:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position] == character
            if not self.grow():
                return False

    def skip(self, character: str) -> None:
        """Step over a character that is there."""
        assert self.at(character)
        self.position += 1


def _decode(file: IO[bytes]) -> Iterator[str]:
    # Bytes that are not UTF-8 become U+FFFD: inside a string they spoil that text, not the file.
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    while chunk := file.read(_CHUNK):
        if text := decoder.decode(chunk):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
