"""The whole way from a dataset's name to token ids, split, counted and reported.

Puts the other modules in order: load, read pairs, split by prompt, tokenise, and stop if too many rows were
bad. Every process that calls it with the same arguments gets the same rows in the same order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow.compute as pc
from datasets import Dataset, Value

from dynamic_dpo.data.ledger import Ledger, length_statistics
from dynamic_dpo.data.pairing import MASK_FIELDS, TOKEN_FIELDS
from dynamic_dpo.data.preference import detect_dataset_kind, detect_rollout_kind, to_preference_pairs
from dynamic_dpo.data.quarantine import Quarantine
from dynamic_dpo.data.shapes.options import RankingRule, ShapeOptions
from dynamic_dpo.data.sources import load_evaluation_rows, load_rows
from dynamic_dpo.data.split import Split, prompt_keys, split_by_prompt
from dynamic_dpo.data.tokenize import TokenizedPairs, tokenize_pairs
from dynamic_dpo.errors import DataError

logger = logging.getLogger("dynamic_dpo")

_BATCH_SIZE = 1000


class PreparedPreferences(NamedTuple):
    """Token ids to train and validate on, and what was done to get them.

    Attributes:
        train: Columns ``prompt_ids, chosen_ids, rejected_ids`` (lists of int32) and ``row``; where others speak
            within an answer also ``chosen_mask, rejected_mask`` (lists of int8, or null).
        validation: The same, or None.
        report: Counts and lengths, as written to ``data_report.json``.
    """

    train: Dataset
    validation: Dataset | None
    report: dict[str, Any]


def prepare_preferences(
    dataset_name: str,
    tokenizer: Any,
    *,
    subset: str = "train",
    eval_dataset_name: str | None = None,
    generated_data: bool = False,
    chat_template: bool = False,
    val_ratio: float = 0.1,
    seed: int = 42,
    max_length: int = 512,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: str = "keep_start",
    columns: Mapping[str, str] | None = None,
    ranking: RankingRule = "best_worst",
    template_kwargs: Mapping[str, Any] | None = None,
    answer_tokens: str = "assistant",
    quarantine_max_share: float = 0.05,
    report_dir: str | os.PathLike[str] | None = None,
    num_proc: int | None = None,
) -> PreparedPreferences:
    """Load, read, split and tokenise a preference dataset.

    Args:
        dataset_name: File, folder or hub name, as ``load_rows`` takes it.
        tokenizer: A Hugging Face tokenizer.
        subset: Split with an optional slice.
        eval_dataset_name: A set to validate on instead of a part of the first: all of a file; of a folder or
            hub set the split ``validation``, else ``test``, else ``train``.
        generated_data: The rows are judged rollouts.
        chat_template: Render text rows through the tokenizer's chat template.
        val_ratio: Share of the prompts for validation, where there is no ``eval_dataset_name``.
        seed: Seed of that split.
        max_length: Longest prompt plus completion in tokens.
        max_prompt_length: Longest prompt, or None.
        max_completion_length: Longest completion, or None.
        truncation_mode: ``keep_start`` or ``keep_end``.
        columns: ``prompt``, ``chosen``, ``rejected`` or ``system`` to the column that holds it, where it has another
            name; usual names are found by themselves.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``; those of a row's own column
            ``chat_template_kwargs`` stand over them.
        ranking: Which two of several ranked answers become a pair, see `ShapeOptions`.
        answer_tokens: Which tokens of an answer are scored: those of the ``assistant``, or ``all`` behind the prompt.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].
        report_dir: Folder for ``quarantine.jsonl`` and ``data_report.json``; None writes neither. Where several
            processes prepare the same set, give it to one of them.
        num_proc: Worker processes; None works in this one.

    Returns:
        Token ids and report.

    Raises:
        DataError: If the data cannot be found, read or used, or if a larger share than
            ``quarantine_max_share`` is unusable (after those rows have been listed).
        ConfigError: If a setting is out of range.
    """
    lengths: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "max_completion_length": max_completion_length,
        "truncation_mode": truncation_mode,
        "answer_tokens": answer_tokens,
    }
    if template_kwargs:
        lengths["template_kwargs"] = dict(template_kwargs)

    options = ShapeOptions(columns or {}, ranking).check()

    def read_pairs(rows: Dataset, quarantine: Quarantine) -> tuple[Dataset, str]:
        kind = detect_rollout_kind(rows) if generated_data else detect_dataset_kind(rows, options)
        pairs, _ = to_preference_pairs(
            rows,
            kind=kind,
            chat_template=chat_template,
            num_proc=num_proc,
            quarantine=quarantine,
            options=options,
        )
        return pairs, kind

    def tokenize(pairs: Dataset, quarantine: Quarantine) -> TokenizedPairs:
        return tokenize_pairs(pairs, tokenizer, num_proc=num_proc, quarantine=quarantine, **lengths)

    num_shared = 0
    with Ledger(quarantine_max_share, report_dir) as ledger:
        rows = load_rows(dataset_name, subset=subset)
        quarantine = validation_quarantine = ledger.open_source(f"{dataset_name} [{subset}]", len(rows))
        pairs, kind = read_pairs(rows, quarantine)
        if eval_dataset_name is None:
            parts = split_by_prompt(pairs, val_ratio=val_ratio, seed=seed)
        else:
            rows = load_evaluation_rows(eval_dataset_name)
            validation_quarantine = ledger.open_source(eval_dataset_name, len(rows))
            parts = Split(pairs, read_pairs(rows, validation_quarantine)[0])
            num_shared = _count_shared_prompts(parts)
        form = form_of(pairs)
        del rows, pairs  # A set that is mapped into memory leaves it with its last reference.
        train = tokenize(parts.train, quarantine)
        validation = parts.validation and tokenize(parts.validation, validation_quarantine)
        if not len(train.dataset):
            raise DataError(f"no pair of {dataset_name!r} [{subset}] is left to train on")

    report = {
        "kind": kind,
        "form": form,
        "sources": ledger.sources(),
        "train": statistics_of(train),
        "validation": statistics_of(validation) if validation else None,
        "prompts_shared_with_validation": num_shared,
        "settings": {"chat_template": chat_template, "val_ratio": val_ratio, "seed": seed, **lengths},
    }
    ledger.write_report(report)
    logger.info("%s\n%s", ledger.summary(), describe(report))
    if val_ratio and not (validation and len(validation.dataset)):
        logger.warning("no pair is left to validate on: raise val_ratio or give eval_dataset_name")
        validation = None
    return PreparedPreferences(train.dataset, validation.dataset if validation else None, report)


def form_of(pairs: Dataset) -> str:
    """Return whether pairs are ``text``, ``messages`` or ``token_ids``."""
    if TOKEN_FIELDS[0] in pairs.column_names:
        return "token_ids"
    return "text" if isinstance(pairs.features["prompt"], Value) else "messages"


def _count_shared_prompts(parts: Split) -> int:
    assert parts.validation is not None
    num_shared = len(prompt_keys(parts.train) & prompt_keys(parts.validation))
    if num_shared:
        logger.warning(
            "%d prompts are in both training and validation: validation figures will look better than they are",
            num_shared,
        )
    return num_shared


def statistics_of(tokenized: TokenizedPairs) -> dict[str, Any]:
    """Return the counts and lengths of a part of a set, for its report."""
    return {
        "pairs": len(tokenized.dataset),
        "truncated": tokenized.num_truncated,
        "boundary_shifts": tokenized.num_boundary_shifts,
        "dropped_turns": tokenized.num_dropped_turns,
        "masked": _masked(tokenized.dataset),
        "tokens": {
            name: length_statistics(tokenized.dataset, name)
            for name in TOKEN_FIELDS
            if len(tokenized.dataset)
        },
    }


def _masked(dataset: Dataset) -> dict[str, int]:
    """Return in how many pairs others speak within an answer, and how many tokens are not scored for it."""
    names = [name for name in MASK_FIELDS if name in dataset.column_names]
    if not names:
        return {"pairs": 0, "tokens": 0}
    pairs = tokens = 0
    for table in dataset.select_columns(names).with_format("arrow").iter(_BATCH_SIZE):
        is_masked = pc.or_(*(pc.is_valid(table.column(name)) for name in names))
        pairs += pc.sum(is_masked).as_py()
        for name in names:
            mask = pc.list_flatten(table.column(name))
            tokens += len(mask) - (pc.sum(mask).as_py() or 0)
    return {"pairs": pairs, "tokens": tokens}


def describe(report: dict[str, Any]) -> str:
    """Return a report's figures in a line a part."""
    lines = [f"{report['kind']} rows as {report['form']}"]
    for part in ("train", "validation"):
        if not (figures := report[part]) or not figures["pairs"]:
            continue
        tokens = "; ".join(
            f"{name.removesuffix('_ids')} {f['median']:.0f} median, {f['p95']:.0f} p95, {f['max']} max"
            for name, f in figures["tokens"].items()
        )
        lines.append(
            f"{part}: {figures['pairs']} pairs ({figures['truncated']} truncated, "
            f"{figures['boundary_shifts']} with a shifted boundary); tokens: {tokens}"
        )
        if figures["masked"]["pairs"]:
            lines.append(
                f"{part}: in {figures['masked']['pairs']} pairs others speak within an answer; "
                f"{figures['masked']['tokens']} tokens of theirs are not scored"
            )
        if figures["dropped_turns"]:
            lines.append(
                f"{part}: {figures['dropped_turns']} turns behind the last answer of the assistant were left out"
            )
    return "\n".join(lines)
