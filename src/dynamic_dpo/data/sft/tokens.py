"""Examples whose chat template is given more than roles and contents, as token ids.

TRL's ``SFTTrainer`` renders messages itself, and passes tools and arguments on where a column of one Arrow type holds
them; the arguments of a tool call have any. So such examples are rendered here, with the same calls: the ids and the
mask of a row without any of it are those that the trainer makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from dynamic_dpo.data.arrow import PROBLEM_FEATURES, map_tables, move_bad_rows
from dynamic_dpo.data.pairing import Pair
from dynamic_dpo.data.preference import TOKENS
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.render import RenderedPair, render_pairs, require_chat_template, template_of
from dynamic_dpo.data.sft.rows import Example
from dynamic_dpo.data.turns.extras import EXTRAS, join_extras, template_arguments, unwritten_field
from dynamic_dpo.errors import DataError

_FEATURES: Final = Features(
    {"input_ids": TOKENS, "completion_mask": List(Value("int8")), "row": Value("int64"), **PROBLEM_FEATURES}
)


def tokenize_examples(
    examples: Dataset,
    tokenizer: Any,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    quarantine: Quarantine | None = None,
) -> Dataset:
    """Render and tokenise examples of messages.

    Args:
        examples: Columns ``prompt`` and ``completion`` of messages, ``row``, and where there are any
            `dynamic_dpo.data.turns.extras.EXTRAS`.
        tokenizer: A tokenizer with a chat template.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``; a row's own stand over them.
        num_proc: Worker processes; None works in this one.
        quarantine: Where to put rows that the template refuses, or of which it leaves out what carries meaning.

    Returns:
        Columns ``input_ids`` and ``completion_mask`` (1 behind the prompt, else 0), lists of equal length, and
        ``row``.

    Raises:
        DataError: If the tokenizer has no chat template, or no row is left.
    """
    require_chat_template(tokenizer)
    quarantine = quarantine if quarantine is not None else Quarantine()
    before = len(quarantine)
    tokenized = map_tables(
        examples,
        _Tokenizer(tokenizer, dict(template_kwargs or {})),
        features=_FEATURES,
        desc="Tokenising conversations",
        num_proc=num_proc,
    )
    kept = move_bad_rows(tokenized, quarantine)
    if not len(kept):
        quarantine.raise_if_above(0.0, len(quarantine) - before)
        raise DataError("no conversation is left to train on")
    return kept


class _Tokenizer:
    """The batch function: a table of examples in, a table of ids and problems out."""

    def __init__(self, tokenizer: Any, template_kwargs: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs

    def __call__(self, table: pa.Table, indices: list[int]) -> pa.Table:
        rows = table.to_pylist()
        records: list[tuple[Any, ...]] = []
        for index, row in zip(indices, rows, strict=True):
            number = row.get("row", index)
            try:
                ids, mask = self._ids(Example(row["prompt"], row["completion"]), row.get(EXTRAS))
                records.append((ids, mask, number, None, None))
            except BadRow as bad:
                records.append((None, None, number, bad.reason, bad.excerpt))
        schema = _FEATURES.arrow_schema
        columns = zip(*records, strict=True)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _ids(self, bare: Example, extras: str | None) -> tuple[list[int], list[int]]:
        example, own = join_extras(bare, extras)
        arguments = template_arguments(own, self.template_kwargs)
        messages = (*example.prompt, *example.completion)
        missing = unwritten_field(template_of(self.tokenizer, arguments), messages, arguments)
        if missing is not None:
            raise BadRow("template_without_field", f"{missing} in {example.prompt!r}")
        pair = Pair(example.prompt, example.completion, example.completion)
        (rendered,) = render_pairs(self.tokenizer, [pair], arguments)
        if not isinstance(rendered, RenderedPair):
            raise rendered
        prompt, whole = (
            list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in rendered[:2]
        )
        num_prompt = next(
            (i for i, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other),
            min(len(prompt), len(whole)),
        )
        return whole, [0] * num_prompt + [1] * (len(whole) - num_prompt)
