"""Rows of any supported shape become preference pairs with the canonical columns.

Finds out what kind of rows a set holds, reads each through ``pairing`` in parallel batches, and keeps count of
those it could not use. Tokens and truncation come later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from dynamic_dpo.data.arrow import (
    PROBLEM_FEATURES,
    as_dataset,
    decode_rows,
    iter_rows,
    map_tables,
    move_bad_rows,
)
from dynamic_dpo.data.pairing import ROW_KINDS, TOKEN_FIELDS, Pair, detect_kind, read_pair
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.errors import DataError

logger = logging.getLogger("dynamic_dpo")

TEXT: Final = Value("string")
MESSAGES: Final = List({"role": Value("string"), "content": Value("string")})
TOKENS: Final = List(Value("int32"))

# Enough rows to see what a set is; a set that changes its kind behind them has those rows quarantined.
_NUM_ROWS_LOOKED_AT: Final = 256


class PreferencePairs(NamedTuple):
    """Pairs ``{prompt, chosen, rejected, row}`` and the rows that gave none."""

    dataset: Dataset
    quarantine: Quarantine


def to_preference_pairs(
    rows: Dataset | Iterable[Any],
    *,
    kind: str = "auto",
    chat_template: bool = False,
    num_proc: int | None = None,
    quarantine: Quarantine | None = None,
) -> PreferencePairs:
    r"""Turn rows into preference pairs.

    Args:
        rows: A dataset (from ``load_rows`` or any other) or an iterable of dictionaries. See ``docs/data.md``
            for the shapes.
        kind: One of ``hh``, ``rollouts``, ``messages``, ``text``, ``token_ids``; ``auto`` takes the kind of
            most of the first rows.
        chat_template: Give HH transcripts and plain text as messages, to be rendered by the tokenizer's chat
            template. Rows that are messages already are not changed by it.
        num_proc: Worker processes; None works in this one.
        quarantine: Where to put rows that give no pair; a new one by default.

    Returns:
        The pairs, with ``row`` the number of the row they came from, and the quarantine. Together they hold
        every row. Prompt and answers are text, or messages, or (``prompt_ids, chosen_ids, rejected_ids``)
        token ids.

    Raises:
        DataError: If ``kind`` is unknown, if there are rows and none has a known shape, or if none is usable.

    Example:
        >>> rows = [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}]
        >>> pairs, quarantine = to_preference_pairs(rows)
        >>> pairs[0]
        {'prompt': '\n\nHuman: Hi\n\nAssistant:', 'chosen': ' Hello', 'rejected': ' No', 'row': 0}
        >>> len(quarantine)
        0
    """
    dataset = as_dataset(rows)
    quarantine = quarantine if quarantine is not None else Quarantine()
    num_before = len(quarantine)
    kind = detect_dataset_kind(dataset) if kind == "auto" else kind
    if kind not in ROW_KINDS:
        known = ", ".join(map(repr, ROW_KINDS))
        raise DataError(f"kind of rows {kind!r} is unknown: expected 'auto', {known}")
    reader = _RowReader(kind, as_messages=chat_template)
    pairs = map_tables(
        dataset, reader, features=reader.features, desc="Reading preference pairs", num_proc=num_proc
    )
    pairs = move_bad_rows(pairs, quarantine)
    if not len(pairs):
        quarantine.raise_if_above(0.0, len(quarantine) - num_before)
        raise DataError("no rows were given: at least one preference pair is needed")
    return PreferencePairs(pairs, quarantine)


def detect_dataset_kind(dataset: Dataset) -> str:
    """Return the kind of most of the first rows.

    Raises:
        DataError: If no row looks like a preference pair; says which fields there are.
    """
    looked_at = list(islice(iter_rows(dataset), _NUM_ROWS_LOOKED_AT))
    kinds = Counter(kind for kind in map(detect_kind, looked_at) if kind)
    if kinds:
        return kinds.most_common(1)[0][0]
    if not looked_at:
        raise DataError("no rows were given: at least one preference pair is needed")
    first = looked_at[0]
    seen = (
        f"fields {sorted(first)}"
        if isinstance(first, dict)
        else f"{first.reason}: {first.excerpt!r}"
        if isinstance(first, BadRow)
        else repr(first)
    )
    raise DataError(
        f"none of the first {len(looked_at)} rows looks like a preference pair (row 0: {seen}); expected chosen "
        "and rejected as text or messages, with or without prompt; prompt_messages, chosen, rejected; or "
        f"{', '.join(TOKEN_FIELDS)}"
    )


class _RowReader:
    """The batch function: a table of rows in, a table of pairs and problems out."""

    def __init__(self, kind: str, *, as_messages: bool) -> None:
        self.kind = kind
        parts = ROW_KINDS[kind].parts
        self.as_messages = as_messages and parts == "text"
        names = TOKEN_FIELDS if parts == "token_ids" else Pair._fields
        column = {"text": TEXT, "messages": MESSAGES, "token_ids": TOKENS}
        columns = dict.fromkeys(names, column["messages" if self.as_messages else parts])
        self.features = Features({**columns, "row": Value("int64"), **PROBLEM_FEATURES})

    def __call__(self, table: pa.Table, indices: list[int]) -> pa.Table:
        records: list[tuple[Any, ...]] = []
        for index, row in zip(indices, decode_rows(table), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise row
                pair = read_pair(row, self.kind, as_messages=self.as_messages)
                records.append((*pair, index, None, None))
            except BadRow as bad:
                records.append((None, None, None, index, bad.reason, bad.excerpt))
        columns = [list(column) for column in zip(*records, strict=True)]
        schema = self.features.arrow_schema
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)
