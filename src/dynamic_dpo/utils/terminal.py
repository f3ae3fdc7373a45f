"""What a stream can show: a line that is drawn again, colours, and how wide it is."""

from __future__ import annotations

import os
import shutil
from typing import TextIO


def draws_lines(stream: TextIO) -> bool:
    """Return whether a line of the stream can be drawn again: a terminal that is not ``TERM=dumb``."""
    return _is_terminal(stream) and os.environ.get("TERM") != "dumb"


def takes_colours(stream: TextIO) -> bool:
    """Return whether the stream shows colours, and nobody has asked for none (https://no-color.org)."""
    return draws_lines(stream) and not os.environ.get("NO_COLOR")


def columns_of(stream: TextIO) -> int:
    """Return the columns of the stream's terminal, 80 where it has none."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (ValueError, AttributeError):  # Closed, or none at all.
        return False
