"""Rows become conversations for supervised fine-tuning, with the answer apart from what precedes it.

Takes the good answer of HH and other preference rows, conversations, and prompt/completion rows. The columns
are the ones that TRL's ``SFTTrainer`` reads; loss on completions only follows from ``prompt`` and ``completion``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from datasets import Dataset

from dynamic_dpo.data.arrow import as_dataset, read_rows
from dynamic_dpo.data.preference import MESSAGES, TEXT
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.sft.rows import read_sft_row
from dynamic_dpo.data.sft.tokens import tokenize_examples
from dynamic_dpo.data.shapes.notes import NOTES, count_notes, noted
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.turns.extras import EXTRAS, split_extras, without_empty_extras

logger = logging.getLogger("dynamic_dpo")

_COLUMNS: Final[dict[str, dict[str, Any]]] = {
    "messages": {"messages": MESSAGES},
    "prompt_completion": {"prompt": MESSAGES, "completion": MESSAGES, EXTRAS: TEXT},
    "text": {"prompt": TEXT, "completion": TEXT},
}


class SFTExamples(NamedTuple):
    """Examples with the column ``row`` beside the requested ones, and the rows that gave none."""

    dataset: Dataset
    quarantine: Quarantine


def build_sft_dataset(rows: Dataset | Iterable[Any], tokenizer: Any = None) -> Dataset:
    r"""Build a dataset for supervised fine-tuning.

    Args:
        rows: HH rows (their chosen answer is used), other preference rows, conversations (``messages``) or
            ``prompt``/``completion`` rows: a dataset or dictionaries.
        tokenizer: None for whole conversations. With a tokenizer, answers stand apart for a loss on them alone:
            as messages if it has a chat template, as plain text (HH tags kept) if it has none.

    Returns:
        Column ``messages``, or columns ``prompt`` and ``completion``; with a tokenizer, rows of which any has tools,
        tool calls, reasoning or arguments of the template become ``input_ids`` and ``completion_mask``. Rows that
        cannot be used are logged by reason and left out.

    Raises:
        DataError: If no row is usable.

    Example:
        >>> row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
        >>> build_sft_dataset([row])[0]["messages"]
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    layout = "messages" if tokenizer is None else sft_layout(tokenizer)
    dataset, quarantine = to_sft_examples(rows, layout=layout)
    if EXTRAS in dataset.column_names:
        dataset = tokenize_examples(dataset, tokenizer, quarantine=quarantine)
    if len(quarantine):
        logger.warning("%s", quarantine.summary(total=len(dataset) + len(quarantine)))
    return dataset.remove_columns("row")


def sft_layout(tokenizer: Any) -> str:
    """Return the layout a tokenizer can use: ``prompt_completion`` in messages, or ``text``."""
    return "prompt_completion" if getattr(tokenizer, "chat_template", None) else "text"


def to_sft_examples(
    rows: Dataset | Iterable[Any],
    *,
    layout: str,
    num_proc: int | None = None,
    quarantine: Quarantine | None = None,
    options: ShapeOptions = ShapeOptions(),  # noqa: B008
) -> SFTExamples:
    """Turn rows into examples and keep those that give none.

    Args:
        rows: As for ``build_sft_dataset``.
        layout: ``messages`` (one conversation), ``prompt_completion`` (both in messages) or ``text`` (both
            plain).
        num_proc: Worker processes; None works in this one.
        quarantine: Where to put rows that cannot be used; a new one by default. It also counts what nothing reads.
        options: What is said of the shape of preference rows.

    Returns:
        Examples and quarantine; together they hold every row. With layout ``prompt_completion``, tools, tool calls,
        reasoning and arguments of the template stand in a column of their own, where any row has some, see
        `dynamic_dpo.data.turns.extras`; the other layouts have no place for them.

    Raises:
        DataError: If there are no rows or none is usable.
    """
    dataset = as_dataset(rows)
    quarantine = quarantine if quarantine is not None else Quarantine()
    examples = read_rows(
        dataset,
        partial(_read, layout=layout, options=options.check()),
        columns={**_COLUMNS[layout], **dict.fromkeys(NOTES, TEXT)},
        quarantine=quarantine,
        desc="Reading conversations",
        needed="conversation",
        num_proc=num_proc,
    )
    return SFTExamples(without_empty_extras(count_notes(examples, quarantine)), quarantine)


def _read(row: Any, *, layout: str, options: ShapeOptions) -> tuple[Any, ...]:
    example, shapes, unused, template = read_sft_row(row, as_messages=layout != "text", options=options)
    bare, extras = split_extras(example, template)
    notes = noted(shapes, unused)
    if layout == "prompt_completion":
        return (*bare, extras, *notes)
    if extras:
        raise BadRow("needs_template", extras)
    return (bare.prompt + bare.completion, *notes) if layout == "messages" else (*bare, *notes)
