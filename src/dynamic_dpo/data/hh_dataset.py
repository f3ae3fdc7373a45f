"""HH rows and judged rollouts as preference datasets: the names that scripts and notebooks use.

Thin: the text rules are in ``hh_text``, reading and counting in ``preference``, templates in ``render``. Rows
that cannot be used are logged by reason, never dropped in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from dynamic_dpo.data.arrow import PROBLEM_FEATURES, map_tables, move_bad_rows
from dynamic_dpo.data.hh_text import convert_to_triples as convert_to_triples
from dynamic_dpo.data.hh_text import split_prompt_and_response as split_prompt_and_response
from dynamic_dpo.data.hh_text import strip_one_leading_newline as strip_one_leading_newline
from dynamic_dpo.data.pairing import Pair
from dynamic_dpo.data.preference import TEXT, to_preference_pairs
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.render import render_pairs, require_chat_template
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.data.turns.endings import end_of_messages
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.templates import parse_hh_to_messages

logger = logging.getLogger("dynamic_dpo")


def build_HH_dataset(rows: Dataset | Iterable[Any]) -> Dataset:
    r"""Build a text preference dataset from HH rows.

    Args:
        rows: Rows ``{"chosen", "rejected"}`` of whole transcripts: a dataset or dictionaries.

    Returns:
        Columns ``prompt, chosen, rejected``, all text. The prompt ends in ``\n\nAssistant:``.

    Raises:
        DataError: If no row is usable.

    Example:
        >>> rows = [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}]
        >>> build_HH_dataset(rows)[0]
        {'prompt': '\n\nHuman: Hi\n\nAssistant:', 'chosen': ' Hello', 'rejected': ' No'}
    """
    return _build(rows, "hh")


def build_rollout_dataset(rows: Dataset | Iterable[Any]) -> Dataset:
    """Build a conversational preference dataset from judged rollouts.

    Args:
        rows: Rows ``{"prompt_messages", "chosen", "rejected", "metadata"}``: a conversation, two answers (text
            or messages), and anything else, which is ignored.

    Returns:
        Columns ``prompt, chosen, rejected``, all lists of messages ``{role, content}``.

    Raises:
        DataError: If no row is usable.

    Example:
        >>> prompt = [{"role": "user", "content": "Hi"}]
        >>> build_rollout_dataset([{"prompt_messages": prompt, "chosen": "Hello", "rejected": "No"}])[0]["chosen"]
        [{'role': 'assistant', 'content': 'Hello'}]
    """
    return _build(rows, "rollouts")


def load_generated_dataset_from_config(config: Any) -> Dataset:
    """Load the judged rollouts that a configuration names.

    Args:
        config: A mapping or configuration object with a section ``dataset`` holding ``dataset_name`` (file,
            folder or hub name) and optionally ``subset``; without a name, ``rollout.output_dir`` is read.

    Returns:
        What ``build_rollout_dataset`` gives.

    Raises:
        DataError: If no place is named, or it holds no usable rollouts.
    """
    dataset = _get(config, "dataset")
    name = _get(dataset, "dataset_name") or _get(_get(config, "rollout"), "output_dir")
    if not name:
        raise DataError(
            "the configuration names no rollouts: set dataset.dataset_name to their file or folder, or "
            "rollout.output_dir to the folder they were written to"
        )
    return build_rollout_dataset(load_rows(str(name), subset=_get(dataset, "subset") or "train"))


def apply_chat_template_to_dataset(dataset: Dataset, tokenizer: Any) -> Dataset:
    """Render the columns ``prompt, chosen, rejected`` to text with the tokenizer's chat template.

    Each answer is rendered behind its prompt, so that prompt + answer is the conversation as the template
    writes it. A BOS that the tokenizer will add by itself is left out. Blanks after the last turn stay out too, and
    so do turns of others behind an answer.

    Args:
        dataset: Text pairs (HH transcripts are read as turns, other prompts as one user turn) or messages.
        tokenizer: A tokenizer with a chat template.

    Returns:
        Columns ``prompt, chosen, rejected``, all text. Rows that the template refuses, or whose conversation
        does not begin with their prompt, are logged and left out.

    Raises:
        DataError: If there is no chat template, or no row can be rendered.
    """
    require_chat_template(tokenizer)
    quarantine = Quarantine()
    features = Features(
        {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "row": Value("int64"), **PROBLEM_FEATURES}
    )
    rendered = map_tables(dataset, _Renderer(tokenizer), features=features, desc="Applying the chat template")
    if num_mixed := sum(map(_others_speak_within, *(dataset[name] for name in ("chosen", "rejected")))):
        logger.warning(
            "in %d of %d pairs others speak within an answer: as text all of it is scored. Train on the messages "
            "themselves to score the assistant's turns alone",
            num_mixed,
            len(dataset),
        )
    return _report(move_bad_rows(rendered, quarantine), quarantine, len(dataset))


class _Renderer:
    """The batch function: pairs of text or messages in, rendered text out."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
        self.added_by_tokenizer = tokenizer.bos_token if adds_bos else ""

    def __call__(self, table: pa.Table, indices: list[int]) -> pa.Table:
        parts = (table.column(name).to_pylist() for name in Pair._fields)
        pairs = [_ended(*map(_as_messages, Pair._fields, row)) for row in zip(*parts, strict=True)]
        records: list[tuple[str | int | None, ...]] = []
        for index, texts in zip(indices, render_pairs(self.tokenizer, pairs), strict=True):
            if isinstance(texts, BadRow):
                records.append((None, None, None, index, texts.reason, texts.excerpt))
            elif not (texts.chosen.startswith(texts.prompt) and texts.rejected.startswith(texts.prompt)):
                records.append((None, None, None, index, "template_not_prefix", texts.chosen))
            else:
                answers = (text[len(texts.prompt) :].rstrip() for text in (texts.chosen, texts.rejected))
                prompt = texts.prompt.removeprefix(self.added_by_tokenizer)
                records.append((prompt, *answers, index, None, None))
        names = (*Pair._fields, "row", *PROBLEM_FEATURES)
        return pa.table(dict(zip(names, map(list, zip(*records, strict=True)), strict=True)))


def _others_speak_within(*answers: Any) -> bool:
    return any(
        message["role"] != "assistant"
        for answer in answers
        if not isinstance(answer, str)
        for message in end_of_messages(answer).answer
    )


def _ended(prompt: Any, chosen: Any, rejected: Any) -> Pair:
    return Pair(prompt, end_of_messages(chosen).answer, end_of_messages(rejected).answer)


def _as_messages(name: str, part: Any) -> list[dict[str, str]]:
    if not isinstance(part, str):
        return list(part)
    return (
        parse_hh_to_messages(part) if name == "prompt" else [{"role": "assistant", "content": part.strip()}]
    )


def _build(rows: Dataset | Iterable[Any], kind: str) -> Dataset:
    pairs, quarantine = to_preference_pairs(rows, kind=kind)
    return _report(pairs, quarantine, len(pairs) + len(quarantine))


def _report(dataset: Dataset, quarantine: Quarantine, total: int) -> Dataset:
    if len(quarantine):
        logger.warning("%s", quarantine.summary(total=total))
    if total and not len(dataset):
        quarantine.raise_if_above(0.0, total)
    return dataset.remove_columns("row")


def _get(section: Any, key: str) -> Any:
    if isinstance(section, Mapping):
        value = section.get(key)
    else:
        value = getattr(section, key, None)
    return str(value) if isinstance(value, Path) else value
