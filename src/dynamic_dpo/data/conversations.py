"""The whole way from a dataset's name to supervised examples, split by prompt, counted and reported.

The counterpart of ``prepare`` for fine-tuning. Token ids, lengths and the loss are the SFT trainer's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from datasets import Dataset

from dynamic_dpo.data.ledger import Ledger
from dynamic_dpo.data.render import require_chat_template
from dynamic_dpo.data.sft.tokens import tokenize_examples
from dynamic_dpo.data.sft_dataset import sft_layout, to_sft_examples
from dynamic_dpo.data.shapes.options import RankingRule, ShapeOptions
from dynamic_dpo.data.sources import load_evaluation_rows, load_rows
from dynamic_dpo.data.split import split_by_prompt
from dynamic_dpo.data.turns.extras import EXTRAS

logger = logging.getLogger("dynamic_dpo")


class PreparedSFT(NamedTuple):
    """Examples to train and validate on.

    Attributes:
        train: Columns ``prompt`` and ``completion``: messages, or text for a tokenizer without chat template; where
            the template is given more than messages, ``input_ids`` and ``completion_mask``.
        validation: The same, or None.
        report: Counts, as written to ``data_report.json``.
    """

    train: Dataset
    validation: Dataset | None
    report: dict[str, Any]


def prepare_sft(
    dataset_name: str,
    tokenizer: Any,
    *,
    subset: str = "train",
    eval_dataset_name: str | None = None,
    val_ratio: float = 0.1,
    seed: int = 42,
    columns: Mapping[str, str] | None = None,
    ranking: RankingRule = "best_worst",
    template_kwargs: Mapping[str, Any] | None = None,
    quarantine_max_share: float = 0.05,
    report_dir: str | os.PathLike[str] | None = None,
    num_proc: int | None = None,
) -> PreparedSFT:
    """Load, read and split a dataset for supervised fine-tuning with loss on completions only.

    Args:
        dataset_name: File, folder or hub name, as ``load_rows`` takes it. HH and other preference rows give
            their chosen answer, conversations their last assistant turn.
        tokenizer: Decides the columns: messages if it has a chat template, plain text if not.
        subset: Split with an optional slice.
        eval_dataset_name: A set to validate on instead of a part of the first.
        val_ratio: Share of the prompts for validation, where there is no ``eval_dataset_name``.
        seed: Seed of that split.
        columns: Of preference rows, see `prepare_preferences`.
        ranking: Of preference rows with several ranked answers, see `prepare_preferences`.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``; those of a row's own column
            ``chat_template_kwargs`` stand over them.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].
        report_dir: Folder for ``quarantine.jsonl`` and ``data_report.json``; None writes neither.
        num_proc: Worker processes; None works in this one.

    Returns:
        Examples and report.

    Raises:
        DataError: If the data cannot be found, read or used, or if a larger share than
            ``quarantine_max_share`` is unusable.
        ConfigError: If a setting is out of range.
    """
    layout, options = sft_layout(tokenizer), ShapeOptions(columns or {}, ranking)
    if template_kwargs:
        require_chat_template(tokenizer)
    with Ledger(quarantine_max_share, report_dir) as ledger:
        rows = load_rows(dataset_name, subset=subset)
        quarantine = train_quarantine = ledger.open_source(f"{dataset_name} [{subset}]", len(rows))
        examples, _ = to_sft_examples(
            rows, layout=layout, num_proc=num_proc, quarantine=quarantine, options=options
        )
        if eval_dataset_name is None:
            train, validation = split_by_prompt(examples, val_ratio=val_ratio, seed=seed)
        else:
            rows = load_evaluation_rows(eval_dataset_name)
            quarantine = ledger.open_source(eval_dataset_name, len(rows))
            train = examples
            validation, _ = to_sft_examples(
                rows, layout=layout, num_proc=num_proc, quarantine=quarantine, options=options
            )
        if template_kwargs or any(EXTRAS in part.column_names for part in (train, validation) if part):
            train, validation = (
                tokenize_examples(
                    part,
                    tokenizer,
                    template_kwargs=template_kwargs,
                    num_proc=num_proc,
                    quarantine=place,
                )
                if part
                else part
                for part, place in ((train, train_quarantine), (validation, quarantine))
            )
    report = {
        "form": "text" if layout == "text" else "messages",
        "sources": ledger.sources(),
        "train": {"examples": len(train)},
        "validation": {"examples": len(validation)} if validation else None,
        "settings": {
            "val_ratio": val_ratio,
            "seed": seed,
            **({"template_kwargs": dict(template_kwargs)} if template_kwargs else {}),
        },
    }
    ledger.write_report(report)
    logger.info("%s\ntrain: %d examples, validation: %d", ledger.summary(), len(train), len(validation or ()))
    return PreparedSFT(
        train.remove_columns("row"), validation.remove_columns("row") if validation else None, report
    )
