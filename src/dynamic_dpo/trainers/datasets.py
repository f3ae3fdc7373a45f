"""Data sets as the trainer takes them: tokenised pairs pass, every TRL-style set is made into such."""

from __future__ import annotations

import logging
from typing import Any

from dynamic_dpo.errors import DataError
from dynamic_dpo.trainers.arguments import Truncation

logger = logging.getLogger("dynamic_dpo")

TOKENISED = ("prompt_ids", "chosen_ids", "rejected_ids")
MAX_QUARANTINED = 0.05
UNLIMITED = 2**31 - 1


def prepare_pairs(dataset: Any, tokenizer: Any, truncation: Truncation, num_proc: int | None = None) -> Any:
    """Return ``dataset`` as tokenised pairs ``{prompt_ids, chosen_ids, rejected_ids, row}``.

    Args:
        dataset: A map-style data set: tokenised and cut to length already, or in a TRL preference format.
        tokenizer: Renders and tokenises where needed.
        truncation: How pairs are cut.
        num_proc: Worker processes.

    Returns:
        The data set, or ``None`` for ``None``.

    Raises:
        DataError: If it cannot be indexed, no pair is usable, or more than 5 % are not.
    """
    if dataset is None:
        return None
    columns = getattr(dataset, "column_names", None)
    if columns is None or not hasattr(dataset, "select"):
        raise DataError(
            f"expected a datasets.Dataset of preference pairs, got {type(dataset).__name__}: streams cannot be "
            "used, because the reference is scored once per pair"
        )
    if set(TOKENISED) <= set(columns):
        if len(dataset) == 0:
            raise DataError("the data set holds no pair")
        return dataset if "row" in columns else dataset.add_column("row", list(range(len(dataset))))

    from dynamic_dpo.data.preference import to_preference_pairs
    from dynamic_dpo.data.tokenize import tokenize_pairs

    total = len(dataset)
    pairs, quarantine = to_preference_pairs(dataset)
    tokenised = tokenize_pairs(
        pairs,
        tokenizer,
        max_length=truncation.max_length or UNLIMITED,
        max_prompt_length=truncation.max_prompt_length,
        max_completion_length=truncation.max_completion_length,
        truncation_mode=truncation.truncation_mode,
        num_proc=num_proc,
        quarantine=quarantine,
    )
    quarantine = tokenised.quarantine
    if len(quarantine):
        logger.warning(
            "%d of %d pairs cannot be used: %s", len(quarantine), total, quarantine.summary(total=total)
        )
    quarantine.raise_if_above(MAX_QUARANTINED, total)
    if len(tokenised.dataset) == 0:
        raise DataError(
            f"none of {total} rows is a usable preference pair: {quarantine.summary(total=total)}"
        )
    return tokenised.dataset
