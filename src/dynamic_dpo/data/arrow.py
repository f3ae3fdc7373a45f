"""Large sets on disk, worked through in batches by one or several processes.

Everything between a source and its token ids passes through ``map_tables``: the results are Arrow files in the
process's scratch folder, so memory stays flat and no stale cache can be met.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.scratch import scratch_path

JSON_COLUMN: Final = "json_line"
"""The one column of a set read from JSON: each row's undecoded bytes.

Arrow wants one type a column, and one odd row would fail the whole file. Kept as written, such a row is one
row's problem, and decoding happens in the worker processes.
"""

PROBLEM_FEATURES: Final = {"reason": Value("string"), "excerpt": Value("string")}

_BATCH_SIZE: Final = 1000
# Starting a worker costs about as much as preparing this many rows.
_MIN_ROWS_PER_PROCESS: Final = 2000


def write_json_lines(lines: Iterable[bytes]) -> Dataset:
    """Store undecoded JSON rows on disk as a dataset with the single column ``json_line``."""
    path = scratch_path("rows")
    schema = pa.schema([(JSON_COLUMN, pa.binary())])
    with path.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _in_batches(lines, _BATCH_SIZE):
            writer.write_table(pa.table([pa.array(batch, pa.binary())], schema=schema))
    return Dataset.from_file(str(path))


def as_dataset(rows: Dataset | Iterable[Any]) -> Dataset:
    """Return rows as a dataset on disk; a dataset is returned as it is.

    Args:
        rows: A dataset, or any iterable of objects. Arrays become lists; what else JSON cannot express becomes
            an object that shows it, which is never mistaken for text.
    """
    if isinstance(rows, Dataset):
        return rows
    return write_json_lines(json.dumps(row, default=_to_json).encode() for row in rows)


def decode_rows(table: pa.Table) -> Iterator[Any | BadRow]:
    """Yield each row of a batch as a Python object, or the ``BadRow`` that says why it cannot be read."""
    if table.column_names != [JSON_COLUMN]:
        yield from table.to_pylist()
        return
    for line in table.column(0).to_pylist():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield BadRow("not_json", line.decode("utf-8", "backslashreplace"))


def iter_rows(dataset: Dataset) -> Iterator[Any | BadRow]:
    """Yield all rows of a dataset as ``decode_rows`` does, in flat memory."""
    for table in dataset.with_format("arrow").iter(_BATCH_SIZE):
        yield from decode_rows(table)


def map_tables(
    dataset: Dataset,
    function: Callable[[pa.Table, list[int]], pa.Table],
    *,
    features: Features,
    desc: str,
    num_proc: int | None = None,
) -> Dataset:
    """Replace all columns of a dataset by what ``function`` returns for each batch.

    Args:
        dataset: Any dataset; with an index mapping it is read through it.
        function: Takes a table and the row numbers in it, returns a table with as many rows.
        features: Columns of the result.
        desc: Text of the progress bar.
        num_proc: Processes. None: one, in which a fast tokenizer may use its own threads.

    Returns:
        A dataset on disk, in the order of the rows.
    """
    if not len(dataset):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    num_proc = min(num_proc or 1, max(1, len(dataset) // _MIN_ROWS_PER_PROCESS))
    with _single_threaded_tokenizers(num_proc > 1):
        mapped = dataset.with_format("arrow").map(
            function,
            batched=True,
            batch_size=_BATCH_SIZE,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features,
            num_proc=num_proc if num_proc > 1 else None,
            # A random fingerprint: hashing a tokenizer is slow, and it may hash the same after a change.
            new_fingerprint=uuid.uuid4().hex[:16],
            cache_file_name=str(scratch_path("map")),
            load_from_cache_file=False,
            desc=desc,
        )
    return mapped.with_format(None)


def read_rows(
    dataset: Dataset,
    read: Callable[[Any], Sequence[Any]],
    *,
    columns: Mapping[str, Any],
    quarantine: Quarantine,
    desc: str,
    needed: str,
    num_proc: int | None = None,
) -> Dataset:
    """Read each row into columns, and set aside the rows that cannot be read.

    Args:
        dataset: Any dataset, undecoded JSON included.
        read: From one row to its values, one a column; raises ``BadRow``. It is sent to worker processes.
        columns: Name and feature of each column.
        quarantine: Receives the rows that cannot be read.
        desc: Text of the progress bar.
        needed: What at least one row must give, for the error.
        num_proc: Processes. None: one.

    Returns:
        The columns, with ``row``, the number of the row each came from.

    Raises:
        DataError: If there are no rows, or none can be read.
    """
    num_before = len(quarantine)
    reader = _RowReader(read, columns)
    rows = map_tables(dataset, reader, features=reader.features, desc=desc, num_proc=num_proc)
    rows = move_bad_rows(rows, quarantine)
    if not len(rows):
        quarantine.raise_if_above(0.0, len(quarantine) - num_before)
        raise DataError(f"no rows were given: at least one {needed} is needed")
    return rows


class _RowReader:
    """The batch function: a table of rows in, a table of what was read and of problems out."""

    def __init__(self, read: Callable[[Any], Sequence[Any]], columns: Mapping[str, Any]) -> None:
        self.read = read
        self.no_values = (None,) * len(columns)
        self.features = Features({**columns, "row": Value("int64"), **PROBLEM_FEATURES})

    def __call__(self, table: pa.Table, indices: list[int]) -> pa.Table:
        records: list[tuple[Any, ...]] = []
        for index, row in zip(indices, decode_rows(table), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise row
                records.append((*self.read(row), index, None, None))
            except BadRow as bad:
                records.append((*self.no_values, index, bad.reason, bad.excerpt))
        schema = self.features.arrow_schema
        columns = zip(*records, strict=True)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


def move_bad_rows(dataset: Dataset, quarantine: Quarantine) -> Dataset:
    """Take the rows with a ``reason`` out of a dataset and into the quarantine.

    Args:
        dataset: A fresh result of ``map_tables`` with the columns ``reason`` and ``excerpt``, null in good
            rows, and ``row``, the number to report.
        quarantine: Receives the bad rows.

    Returns:
        The good rows without those two columns.
    """
    bad = np.flatnonzero(dataset.data.column("reason").is_valid().to_numpy())
    for entry in dataset.select(bad).select_columns(["row", *PROBLEM_FEATURES]):
        quarantine.add(entry["row"], entry["reason"], entry["excerpt"])
    dataset = dataset.remove_columns(list(PROBLEM_FEATURES))
    return dataset.select(np.delete(np.arange(len(dataset)), bad)) if len(bad) else dataset


def _to_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else {"not_json": repr(value)}


def _in_batches(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _single_threaded_tokenizers(wanted: bool) -> Iterator[None]:
    """Keep tokenizer threads out of forked workers, which already fill the cores, and its warning away."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    if wanted:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if wanted:
            if before is None:
                del os.environ["TOKENIZERS_PARALLELISM"]
            else:
                os.environ["TOKENIZERS_PARALLELISM"] = before
