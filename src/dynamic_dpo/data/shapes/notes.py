"""What was noted of each row while a set was read: the shapes that it had, and what it holds that nothing reads."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pyarrow.compute as pc
from datasets import Dataset

from dynamic_dpo.data.quarantine import Quarantine

logger = logging.getLogger("dynamic_dpo")

NOTES: Final = ("shapes", "unused")
"""Columns that hold the notes: names, one a line."""
_ROWS_AT_ONCE: Final = 10_000


def noted(shapes: Sequence[str], unused: Sequence[str]) -> tuple[str, str]:
    """Return the notes of one row as values of `NOTES`."""
    return "\n".join(shapes), "\n".join(unused)


def count_notes(rows: Dataset, quarantine: Quarantine) -> Dataset:
    """Take the notes out of rows and count them in their quarantine; what nothing reads is said.

    Args:
        rows: Rows with the columns `NOTES`.
        quarantine: Of their source.

    Returns:
        The rows without these columns.
    """
    shapes, unused = (_counted(rows, name) for name in NOTES)
    if unused:
        names = ", ".join(f"{name} ({count} rows)" for name, count in unused.most_common())
        source = f"{quarantine.source}: " if quarantine.source else ""
        logger.warning("%snothing reads %s", source, names)
    quarantine.shapes.update(shapes)
    quarantine.unused.update(unused)
    return rows.remove_columns(list(NOTES))


def _counted(rows: Dataset, column: str) -> Counter[str]:
    found = Counter[str]()
    for table in rows.select_columns([column]).with_format("arrow").iter(_ROWS_AT_ONCE):
        for entry in pc.value_counts(table.column(0)).to_pylist():
            for name in filter(None, entry["values"].split("\n")):
                found[name] += entry["counts"]
    return found
