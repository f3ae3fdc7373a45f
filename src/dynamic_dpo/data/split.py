"""Training and validation parts that share no prompt.

Each prompt is placed by a hash of its content and the seed, so a prompt's side does not depend on the other
rows, on their order, or on how many there are. A prompt may be text, messages or token ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from datasets import Dataset

from dynamic_dpo.errors import ConfigError, DataError

_BATCH_SIZE: Final = 1000


class Split(NamedTuple):
    """The two parts of a dataset."""

    train: Dataset
    validation: Dataset | None


def split_by_prompt(dataset: Dataset, *, val_ratio: float, seed: int) -> Split:
    """Split a dataset so that all rows of one prompt are on one side.

    Args:
        dataset: Rows with a column ``prompt`` or ``prompt_ids``.
        val_ratio: Expected share of the prompts in validation, in [0, 1). At least one prompt goes to each side
            if it is above 0 and there are two prompts.
        seed: Another seed is another, independent split.

    Returns:
        The parts, rows in their former order; validation is None if it would be empty.

    Raises:
        ConfigError: If ``val_ratio`` is outside [0, 1).
        DataError: If there is no prompt column.

    Example:
        >>> rows = Dataset.from_dict({"prompt": ["a", "b", "a", "c"]})
        >>> train, validation = split_by_prompt(rows, val_ratio=0.5, seed=0)
        >>> set(train["prompt"]) & set(validation["prompt"])
        set()
    """
    if not 0 <= val_ratio < 1:
        raise ConfigError(f"val_ratio must lie in [0, 1), got {val_ratio}")
    if val_ratio == 0 or not len(dataset):
        return Split(dataset, None)
    positions = np.fromiter(
        (_position(prompt, seed) for prompt in _prompts(dataset)), np.float64, len(dataset)
    )
    low, high = positions.min(), positions.max()
    if low == high:  # One prompt cannot be split.
        return Split(dataset, None)
    # The cut moves only as far as it takes to leave neither side empty.
    in_validation = (positions < val_ratio) & (positions < high) | (positions == low)
    return Split(
        dataset.select(np.flatnonzero(~in_validation)), dataset.select(np.flatnonzero(in_validation))
    )


def prompt_keys(dataset: Dataset) -> set[str]:
    """Return the distinct prompts of a dataset as content hashes."""
    return {_digest(prompt).hex() for prompt in _prompts(dataset)}


def _position(prompt: Any, seed: int) -> float:
    """Map a prompt to a fixed place in [0, 1)."""
    return int.from_bytes(_digest(prompt, seed)[:8]) / 2**64


def _digest(prompt: Any, seed: int = 0) -> bytes:
    content = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(f"{seed}\n{content}".encode(), digest_size=16).digest()


def _prompts(dataset: Dataset) -> Iterator[Any]:
    name = next((name for name in ("prompt", "prompt_ids") if name in dataset.column_names), None)
    if name is None:
        raise DataError(
            f"the rows have no column 'prompt' or 'prompt_ids' to split by, only {dataset.column_names}"
        )
    for table in dataset.select_columns([name]).with_format("arrow").iter(_BATCH_SIZE):
        yield from table.column(0).to_pylist()
