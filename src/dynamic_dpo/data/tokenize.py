"""Preference pairs become token ids: prompt, chosen, rejected, each answer closed by exactly one stop token.

Whole sequences are tokenised, never pieces glued together; the prompt is as much of it as both sequences share
token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from dynamic_dpo.data.arrow import PROBLEM_FEATURES, map_tables, move_bad_rows
from dynamic_dpo.data.pairing import MASK_FIELDS, TOKEN_FIELDS
from dynamic_dpo.data.preference import TOKENS
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.readers import IdReader, MessageReader, PairReader, ReadPair, SampledReader, TextReader
from dynamic_dpo.data.truncate import LengthLimits, TokenPair, truncate_pair
from dynamic_dpo.data.turns.endings import Span
from dynamic_dpo.data.turns.extras import EXTRAS
from dynamic_dpo.data.turns.mask import answer_mask, last_scored

_FEATURES: Final = Features(
    {
        **dict.fromkeys(TOKEN_FIELDS, TOKENS),
        **dict.fromkeys(MASK_FIELDS, List(Value("int8"))),
        "row": Value("int64"),
        "shifted": Value("bool"),
        "truncated": Value("bool"),
        "dropped_turns": Value("int32"),
        **PROBLEM_FEATURES,
    }
)


class TokenizedPairs(NamedTuple):
    """Tokenised pairs and what happened on the way.

    Attributes:
        dataset: Columns ``prompt_ids, chosen_ids, rejected_ids`` (lists of int32) and ``row``; where others speak
            within an answer also ``chosen_mask, rejected_mask`` (lists of int8, or null).
        quarantine: The rows that gave no pair of ids.
        num_boundary_shifts: Pairs whose prompt ends a few tokens earlier than the prompt alone would, because
            tokens merge across its end or the template renders that end differently.
        num_truncated: Pairs that lost tokens to a length limit.
        num_dropped_turns: Turns that others had behind the last one of the assistant, and that were left out.
    """

    dataset: Dataset
    quarantine: Quarantine
    num_boundary_shifts: int
    num_truncated: int
    num_dropped_turns: int = 0


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: Any,
    *,
    max_length: int = 512,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: str = "keep_start",
    answer_tokens: str = "assistant",
    template_kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    quarantine: Quarantine | None = None,
) -> TokenizedPairs:
    """Tokenise and truncate preference pairs.

    Text is tokenised as prompt + answer with the tokenizer's own special tokens (BOS once), and eos is added
    to answers that do not end in a stop token. Messages are rendered by the chat template in one piece and
    tokenised as rendered; blanks behind the answer's stop token are dropped, eos is added where the template
    writes none. Ids are only truncated; the ids of sampled answers follow their rendered prompt, unless they do not
    spell the answers with this tokenizer, whose text is then tokenised.

    Args:
        dataset: Pairs as ``to_preference_pairs`` gives them.
        tokenizer: A Hugging Face tokenizer. It needs no pad token.
        max_length: Longest prompt plus completion, in tokens.
        max_prompt_length: Longest prompt; its end is kept (and a leading BOS).
        max_completion_length: Longest completion; its start is kept.
        truncation_mode: ``keep_start`` or ``keep_end``, see ``LengthLimits``.
        answer_tokens: Which tokens of an answer are scored: those that the ``assistant`` writes, the end of each of
            its turns included, or ``all`` behind the prompt, whose ids are those of TRL.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``; a row's own stand over them.
        num_proc: Worker processes; None works in this one, with the tokenizer's own threads.
        quarantine: Where to put rows that cannot be used; a new one by default.

    Returns:
        The ids, the quarantine and two counts.

    Raises:
        DataError: If messages meet a tokenizer without chat template, or nothing ends an answer: the tokenizer
            has no eos token and the template writes no stop token.
        ConfigError: If a limit is out of range, or ``answer_tokens`` unknown.
    """
    quarantine = quarantine if quarantine is not None else Quarantine()
    limits = LengthLimits(max_length, max_prompt_length, max_completion_length, truncation_mode)
    if set(TOKEN_FIELDS) <= set(dataset.column_names):
        has_masks = set(MASK_FIELDS) <= set(dataset.column_names)
        reader: PairReader = IdReader(tokenizer, answer_tokens, has_masks=has_masks)
    elif isinstance(dataset.features["prompt"], Value):
        reader = TextReader(tokenizer, answer_tokens)
    elif "chosen_ids" in dataset.column_names:
        reader = SampledReader(tokenizer, answer_tokens, template_kwargs)
    else:
        reader = MessageReader(tokenizer, answer_tokens, template_kwargs)
    tokenized = map_tables(
        dataset,
        _Tokenizer(reader, limits),
        features=_FEATURES,
        desc="Tokenising preference pairs",
        num_proc=num_proc,
    )
    kept = move_bad_rows(tokenized, quarantine)
    counted = ["shifted", "truncated", "dropped_turns"]
    counts = (pc.sum(tokenized.data.column(name)).as_py() or 0 for name in counted)
    if all(kept.data.column(name).null_count == len(kept.data) for name in MASK_FIELDS):
        kept = kept.remove_columns(list(MASK_FIELDS))
    return TokenizedPairs(kept.remove_columns(counted), quarantine, *counts)


class _Tokenizer:
    """The batch function: a table of pairs in, a table of ids and problems out."""

    def __init__(self, reader: PairReader, limits: LengthLimits) -> None:
        self.reader = reader
        self.limits = limits

    def __call__(self, table: pa.Table, indices: list[int]) -> pa.Table:
        rows = table.column("row").to_pylist() if "row" in table.column_names else indices
        columns = (table.column(name).to_pylist() for name in self.reader.columns)
        pairs = [self.reader.kind(*parts) for parts in zip(*columns, strict=True)]
        extras = table.column(EXTRAS).to_pylist() if EXTRAS in table.column_names else None
        read = self.reader.encode(pairs, extras)
        records = [self._record(row, one) for row, one in zip(rows, read, strict=True)]
        schema = _FEATURES.arrow_schema
        arrays = [
            _array(list(column), field.type)
            for column, field in zip(zip(*records, strict=True), schema, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _record(self, row: int, read: ReadPair | BadRow) -> tuple[Any, ...]:
        try:
            if isinstance(read, BadRow):
                raise read
            whole, num_lost = self.reader.finish(read.texts)
            pair = truncate_pair(whole, self.limits, bos=self.reader.tokenizer.bos_token_id)
            masks: tuple[list[int] | None, list[int] | None] = (None, None)
            if any(read.foreign):
                pair, masks = _masked(pair, read.foreign, num_prompt=len(whole.prompt))
        except BadRow as bad:
            return (*[None] * 5, row, False, False, 0, bad.reason, bad.excerpt)
        return (*pair, *masks, row, num_lost > 0, pair != whole, read.num_dropped_turns, None, None)


def _masked(
    pair: TokenPair, foreign: Sequence[Sequence[Span]], *, num_prompt: int
) -> tuple[TokenPair, tuple[list[int] | None, list[int] | None]]:
    """Return the pair with its masks, each answer cut behind its last token that is scored.

    Args:
        pair: The pair after truncation.
        foreign: Where others speak, in tokens of the sequences before it.
        num_prompt: Tokens of the prompt before it.

    Raises:
        BadRow: If truncation has left an answer no such token, or both the same tokens.
    """
    answers, masks = [], []
    for answer, spans in zip(pair[1:], foreign, strict=True):
        mask = answer_mask(spans, num_prompt=num_prompt, num_answer=len(answer))
        end = len(answer) if mask is None else last_scored(mask)
        if not end:
            raise BadRow("nothing_scored", f"{len(answer)} answer tokens, all of them others'")
        answers.append(answer[:end])
        masks.append(mask[:end] if mask is not None and 0 in mask[:end] else None)
    if answers[0] == answers[1]:
        raise BadRow("identical_after_truncation", f"the same first {len(answers[0])} answer tokens")
    return TokenPair(pair.prompt, *answers), (masks[0], masks[1])


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    # Through one flat buffer: Arrow's own conversion of nested Python lists takes several times as long.
    lengths = [0 if ids is None else len(ids) for ids in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    dtype = kind.value_type.to_pandas_dtype()
    flat = np.fromiter(chain.from_iterable(filter(None, values)), dtype, offsets[-1])
    missing = pa.array([ids is None for ids in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind, mask=missing)
