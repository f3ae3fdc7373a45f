"""The pairs of a prepared set as text, in batches: what the model will see, decoded from the ids that it will see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from dynamic_dpo.data.pairing import MASK_FIELDS

_BATCH_SIZE = 256
# Where words are not set apart by spaces, each character is one.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


class PairTexts(NamedTuple):
    """One pair.

    Attributes:
        row: Number of the row that it came from.
        prompt: The rendered prompt, special tokens included.
        chosen: The chosen answer, special tokens included.
        rejected: The rejected answer, special tokens included.
        num_prompt_tokens: Length of the prompt.
        num_chosen_tokens: Length of the chosen answer, in tokens that are scored.
        num_rejected_tokens: Length of the rejected answer, likewise.
        num_chosen_read: Tokens within the chosen answer that others say, which are not scored.
        num_rejected_read: The same of the rejected answer.
    """

    row: int
    prompt: str
    chosen: str
    rejected: str
    num_prompt_tokens: int
    num_chosen_tokens: int
    num_rejected_tokens: int
    num_chosen_read: int = 0
    num_rejected_read: int = 0


def iter_texts(dataset: Dataset, tokenizer: Any) -> Iterator[PairTexts]:
    """Yield the pairs of a set of token ids, in their order."""
    for batch in dataset.iter(batch_size=_BATCH_SIZE):
        sides = [batch[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        texts = [tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False) for ids in sides]
        lengths = [[len(ids) for ids in side] for side in sides]
        for number, name in enumerate(MASK_FIELDS, start=1):
            masks = batch.get(name) or [None] * len(batch["row"])
            read = [0 if mask is None else mask.count(0) for mask in masks]
            lengths[number] = [whole - part for whole, part in zip(lengths[number], read, strict=True)]
            lengths.append(read)
        for row, *rest in zip(batch["row"], *texts, *lengths, strict=True):
            yield PairTexts(row, *rest)


def without_special_tokens(text: str, tokenizer: Any) -> str:
    """Return a decoded text with the tokenizer's special tokens taken out.

    A text is decoded once, with them; taking them out again costs less than a second decoding.
    """
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, " ")
    return text


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case; punctuation and white space do not count.

    >>> words("Hello,  WORLD!"), words("你好")
    (['hello', 'world'], ['你', '好'])
    """
    return _WORD.findall(text.lower())


def without_frame(texts: Sequence[str]) -> list[str]:
    """Return texts without the beginning and the end that all of them share: what a template puts around a prompt.

    >>> without_frame(["<s>user: a dog<bot>", "<s>user: a cat<bot>"])
    ['dog', 'cat']
    """
    if len(set(texts)) < 2:
        return list(texts)
    start = _common_start(texts)
    end = _common_start([text[len(start) :][::-1] for text in texts])[::-1]
    # Not into a word: it would not be found as that word any more.
    start = start[: len(start) - len(_last_word(start))]
    end = end[len(_first_word(end)) :]
    return [text[len(start) : len(text) - len(end)] for text in texts]


def _common_start(texts: Sequence[str]) -> str:
    # What the first and the last in order share, all share.
    first, last = min(texts), max(texts)
    length = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return first[:length]


def _last_word(text: str) -> str:
    found = re.search(r"\w*$", text)
    return found.group() if found else ""


def _first_word(text: str) -> str:
    found = re.match(r"\w*", text)
    return found.group() if found else ""
