"""The books of one preparation: every source, its rows, its quarantine, and the files that tell of them.

Used as a context: whatever happens inside, the quarantined rows are written down, and too many of them are an
error that names the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from dynamic_dpo.data.quarantine import Quarantine
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.utils.files import write_json
from dynamic_dpo.utils.secrets import redact_values

QUARANTINE_FILE: Final = "quarantine.jsonl"
REPORT_FILE: Final = "data_report.json"

_BATCH_SIZE: Final = 1000


class Ledger:
    """Sources with their quarantines.

    Args:
        max_share: Largest share of a source's rows that may be quarantined, in [0, 1].
        report_dir: Folder for the two files; None writes none.

    Raises:
        ConfigError: If ``max_share`` is outside [0, 1].
    """

    def __init__(self, max_share: float, report_dir: str | os.PathLike[str] | None) -> None:
        if not 0 <= max_share <= 1:
            raise ConfigError(f"quarantine_max_share must lie in [0, 1], got {max_share}")
        self.max_share = max_share
        self.report_dir = None if report_dir is None else Path(report_dir)
        self._sources: list[tuple[Quarantine, int]] = []

    def open_source(self, name: str, num_rows: int) -> Quarantine:
        """Return an empty quarantine for a source of so many rows."""
        self._sources.append((Quarantine(name), num_rows))
        return self._sources[-1][0]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the quarantine, and put its own error before one that follows from it."""
        path = None
        if self.report_dir is not None:
            path = self.report_dir / QUARANTINE_FILE
            for number, (quarantine, _) in enumerate(self._sources):
                quarantine.write(path, append=number > 0)
        if error is None or isinstance(error, DataError):
            for quarantine, num_rows in self._sources:
                quarantine.raise_if_above(self.max_share, num_rows, path=path)

    def sources(self) -> list[dict[str, Any]]:
        """Return name, rows, quarantined rows by reason, and what nothing reads, of each source."""
        return [
            {
                "name": q.source,
                "rows": n,
                "quarantined": len(q),
                "reasons": q.counts(),
                **{
                    name: dict(sorted(counts.items()))
                    for name, counts in (("shapes", q.shapes), ("unused", q.unused))
                    if counts
                },
            }
            for q, n in self._sources
        ]

    def summary(self) -> str:
        """Return one line a source."""
        return "\n".join(q.summary(total=n) for q, n in self._sources)

    def write_report(self, report: dict[str, Any]) -> None:
        """Write ``data_report.json``, if there is a folder for it."""
        if self.report_dir is not None:
            write_json(self.report_dir / REPORT_FILE, redact_values(report))


def length_statistics(dataset: Dataset, column: str) -> dict[str, float]:
    """Return mean, median, 95th percentile and maximum of the lengths of a list column.

    Example:
        >>> length_statistics(Dataset.from_dict({"ids": [[1], [1, 2], [1, 2, 3]]}), "ids")
        {'mean': 2.0, 'median': 2.0, 'p95': 2.9, 'max': 3}
    """
    batches = dataset.select_columns([column]).with_format("arrow").iter(_BATCH_SIZE)
    lengths = np.concatenate([pc.list_value_length(table.column(0)).to_numpy() for table in batches])
    return {
        "mean": round(float(lengths.mean()), 1),
        "median": float(np.median(lengths)),
        "p95": round(float(np.quantile(lengths, 0.95)), 1),
        "max": int(lengths.max()),
    }
