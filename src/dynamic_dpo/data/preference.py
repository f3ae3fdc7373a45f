"""Rows of any supported shape become preference pairs with the canonical columns.

Finds out what kind of rows a set holds, reads each through ``pairing`` in parallel batches, and keeps count of
those it could not use. Tokens and truncation come later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

from datasets import Dataset, List, Value

from dynamic_dpo.data.arrow import as_dataset, iter_rows, read_rows
from dynamic_dpo.data.pairing import (
    MASK_FIELDS,
    ROW_KINDS,
    TOKEN_FIELDS,
    Pair,
    SampledPair,
    detect_kind,
    read_row,
)
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.shapes.notes import NOTES, count_notes, noted
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.shapes.table import is_unpaired
from dynamic_dpo.data.turns.extras import EXTRAS, split_extras, without_empty_extras
from dynamic_dpo.errors import DataError

TEXT: Final = Value("string")
MESSAGES: Final = List({"role": Value("string"), "content": Value("string")})
TOKENS: Final = List(Value("int32"))

# Enough rows to see what a set is; a set that changes its kind behind them has those rows quarantined.
_NUM_FIRST_ROWS: Final = 256


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
    options: ShapeOptions = ShapeOptions(),  # noqa: B008
) -> PreferencePairs:
    r"""Turn rows into preference pairs.

    Args:
        rows: A dataset (from ``load_rows`` or any other) or an iterable of dictionaries. See ``docs/data.md``
            for the shapes.
        kind: One of ``hh``, ``rollouts``, ``sampled``, ``messages``, ``text``, ``token_ids``; ``auto`` takes the
            kind of most of the first rows.
        chat_template: Give HH transcripts and plain text as messages, to be rendered by the tokenizer's chat
            template. Rows that are messages already are not changed by it.
        num_proc: Worker processes; None works in this one.
        quarantine: Where to put rows that give no pair; a new one by default. It also counts what nothing reads.
        options: What is said of the rows' shape, where it is not found by itself.

    Returns:
        The pairs, with ``row`` the number of the row they came from, and the quarantine. Together they hold
        every row. Prompt and answers are text, or messages (those of kind ``sampled`` with the columns
        ``chosen_ids, rejected_ids``), or (``prompt_ids, chosen_ids, rejected_ids``) token ids, with
        ``chosen_mask, rejected_mask`` where rows bring them.

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
    options.check()
    kind = detect_dataset_kind(dataset, options) if kind == "auto" else kind
    if kind not in ROW_KINDS:
        known = ", ".join(map(repr, ROW_KINDS))
        raise DataError(f"kind of rows {kind!r} is unknown: expected 'auto', {known}")
    parts = ROW_KINDS[kind].parts
    as_messages = chat_template and parts == "text"
    columns = {
        "text": dict.fromkeys(Pair._fields, TEXT),
        "messages": dict.fromkeys(Pair._fields, MESSAGES),
        "sampled": {name: TOKENS if name in TOKEN_FIELDS else MESSAGES for name in SampledPair._fields},
        "token_ids": dict.fromkeys((*TOKEN_FIELDS, *MASK_FIELDS), TOKENS),
    }
    pairs = read_rows(
        dataset,
        partial(_read, kind=kind, as_messages=as_messages, options=options),
        columns={
            **columns["messages" if as_messages else parts],
            **({} if parts == "token_ids" else {EXTRAS: TEXT}),
            **dict.fromkeys(NOTES, TEXT),
        },
        quarantine=quarantine,
        desc="Reading preference pairs",
        needed="preference pair",
        num_proc=num_proc,
    )
    return PreferencePairs(_finished(pairs, quarantine), quarantine)


def _read(row: object, *, kind: str, as_messages: bool, options: ShapeOptions) -> tuple[Any, ...]:
    pair, shapes, unused, template = read_row(row, kind, as_messages=as_messages, options=options)
    notes = noted(shapes, unused)
    if kind == "token_ids":
        return (*pair, *notes)
    bare, extras = split_extras(pair, template)
    return (*bare, extras, *notes)


def _finished(pairs: Dataset, quarantine: Quarantine) -> Dataset:
    """Count what was noted of the rows, and drop columns that none of them fills."""
    pairs = without_empty_extras(count_notes(pairs, quarantine))
    masks = [name for name in MASK_FIELDS if name in pairs.column_names]
    if all(pairs.data.column(name).null_count == len(pairs.data) for name in masks):
        pairs = pairs.remove_columns(masks)
    return pairs


def detect_rollout_kind(dataset: Dataset) -> str:
    """Return ``sampled`` if most of the first rows hold the token ids that were sampled, else ``rollouts``."""
    kinds = Counter(map(detect_kind, islice(iter_rows(dataset), _NUM_FIRST_ROWS)))
    return "sampled" if 2 * kinds["sampled"] > kinds.total() else "rollouts"


def detect_dataset_kind(dataset: Dataset, options: ShapeOptions = ShapeOptions()) -> str:  # noqa: B008
    """Return the kind of most of the first rows.

    Raises:
        DataError: If no row looks like a preference pair; says which fields there are.
    """
    first_rows = list(islice(iter_rows(dataset), _NUM_FIRST_ROWS))
    kinds = Counter(kind for row in first_rows if (kind := detect_kind(row, options)))
    if kinds:
        return kinds.most_common(1)[0][0]
    if not first_rows:
        raise DataError("no rows were given: at least one preference pair is needed")
    first = first_rows[0]
    if all(map(is_unpaired, first_rows)):
        raise DataError(
            "the rows are single answers with a label (completion, label), and DPO compares two answers to a prompt. "
            "Where prompts have a good and a bad answer, write them as rows of prompt, chosen, rejected; where they "
            "have not, sample pairs with dynamic-dpo rollout, or train with a method for single answers such as KTO"
        )
    seen = (
        f"fields {sorted(first)}"
        if isinstance(first, dict)
        else f"{first.reason}: {first.excerpt!r}"
        if isinstance(first, BadRow)
        else repr(first)
    )
    raise DataError(
        f"none of the first {len(first_rows)} rows looks like a preference pair (row 0: {seen}); expected chosen "
        "and rejected as text or messages, with or without prompt; prompt_messages, chosen, rejected; or "
        f"{', '.join(TOKEN_FIELDS)}"
    )
