"""Several sets as one: each read in its own shape, split together by prompt, and drawn by weight.

An epoch is the largest in which the sets have the shares that their weights ask for and no pair is used twice; which
pairs of a set are in it is drawn by the seed and the set's name, so that another set changes no draw.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from dynamic_dpo.data.ledger import Ledger
from dynamic_dpo.data.pairing import MASK_FIELDS
from dynamic_dpo.data.preference import detect_dataset_kind, detect_rollout_kind, to_preference_pairs
from dynamic_dpo.data.prepare import PreparedPreferences, describe, form_of, statistics_of
from dynamic_dpo.data.quarantine import Quarantine
from dynamic_dpo.data.shapes.options import RankingRule, ShapeOptions
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.data.split import split_by_prompt
from dynamic_dpo.data.tokenize import TokenizedPairs, tokenize_pairs
from dynamic_dpo.data.turns.extras import EXTRAS
from dynamic_dpo.errors import ConfigError, DataError

logger = logging.getLogger("dynamic_dpo")

_SET = "set"


class MixtureSet(NamedTuple):
    """One set of a mixture.

    Attributes:
        dataset_name: File, folder or hub name, as `load_rows` takes it.
        subset: Split with an optional slice.
        weight: Its share of an epoch, relative to the others' weights; ``None`` in all sets: all pairs of each.
        limit: Most of its pairs, drawn at random; ``None``: all.
        generated_data: The rows are judged rollouts.
        columns: See `ShapeOptions`.
        ranking: See `ShapeOptions`.
    """

    dataset_name: str
    subset: str = "train"
    weight: float | None = None
    limit: int | None = None
    generated_data: bool = False
    columns: Mapping[str, str] = {}
    ranking: RankingRule = "best_worst"


class _Part(NamedTuple):
    """The pairs of one set that are trained or validated on, as ids, their rows counted over all sets."""

    tokenized: TokenizedPairs
    drawn: Dataset


def prepare_mixture(
    sets: Mapping[str, MixtureSet],
    tokenizer: Any,
    *,
    chat_template: bool = False,
    val_ratio: float = 0.1,
    seed: int = 42,
    quarantine_max_share: float = 0.05,
    report_dir: str | os.PathLike[str] | None = None,
    num_proc: int | None = None,
    **lengths: Any,
) -> PreparedPreferences:
    """Load, read, split, tokenise and draw several sets.

    Args:
        sets: Name to set; their order is that of the row numbers.
        tokenizer: A Hugging Face tokenizer.
        chat_template: Render text rows through the tokenizer's chat template.
        val_ratio: Share of the prompts of all sets for validation. A prompt that two sets have is on one side.
        seed: Seed of the split, the limits and the draw.
        quarantine_max_share: Largest share of unusable rows of a set, in [0, 1].
        report_dir: See `prepare_preferences`.
        num_proc: Worker processes; None works in this one.
        **lengths: Limits and further arguments of `tokenize_pairs`.

    Returns:
        Token ids and report. A row's number is its place in the sets one behind the other; ``report["sets"]`` says
        where each begins, and how many pairs were drawn from it.

    Raises:
        ConfigError: If some sets have a weight and others none.
        DataError: If a set cannot be used, or the sets are text and conversations mixed.
    """
    _check_weights(sets)
    parts: dict[str, list[_Part]] = {"train": [], "validation": []}
    with Ledger(quarantine_max_share, report_dir) as ledger:
        pairs, quarantines, first_rows, kinds = [], [], [0], []
        for number, (name, one) in enumerate(sets.items()):
            rows = load_rows(one.dataset_name, subset=one.subset)
            quarantine = ledger.open_source(f"{name}: {one.dataset_name} [{one.subset}]", len(rows))
            read, kind = _read(rows, one, quarantine, chat_template=chat_template, num_proc=num_proc)
            read = _limited(read, one.limit, f"{seed}/{name}/limit")
            pairs.append(read.add_column(_SET, pa.array([number] * len(read), pa.int32())))
            quarantines.append(quarantine)
            kinds.append(kind)
            first_rows.append(first_rows[-1] + len(rows))
        form = _common_form(sets, pairs)
        split = split_by_prompt(_joined(pairs), val_ratio=val_ratio, seed=seed)
        for part, whole in (("train", split.train), ("validation", split.validation)):
            if whole is None:
                continue
            owners = np.asarray(whole.data.column(_SET) if whole._indices is None else whole[_SET])
            for number, quarantine in enumerate(quarantines):
                own = whole.select(np.flatnonzero(owners == number)).remove_columns(_SET)
                tokenized = tokenize_pairs(
                    own, tokenizer, num_proc=num_proc, quarantine=quarantine, **lengths
                )
                parts[part].append(_Part(tokenized, tokenized.dataset))
        parts["train"] = _drawn(sets, parts["train"], seed)
        train = _together(parts["train"], first_rows)
        if not len(train.dataset):
            raise DataError(f"no pair of {', '.join(sets)} is left to train on")
        validation = _together(parts["validation"], first_rows) if parts["validation"] else None

    of_sets = {
        name: {
            "kind": kinds[number],
            "weight": one.weight,
            "first_row": first_rows[number],
            "pairs": len(parts["train"][number].tokenized.dataset),
            "drawn": len(parts["train"][number].drawn),
            "validation": len(parts["validation"][number].drawn) if parts["validation"] else 0,
        }
        for number, (name, one) in enumerate(sets.items())
    }
    report: dict[str, Any] = {
        "kind": "mixture",
        "form": form,
        "sources": ledger.sources(),
        "sets": of_sets,
        "train": statistics_of(train),
        "validation": statistics_of(validation) if validation else None,
        "prompts_shared_with_validation": 0,
        "settings": {"chat_template": chat_template, "val_ratio": val_ratio, "seed": seed, **lengths},
    }
    ledger.write_report(report)
    shares = ", ".join(
        f"{name} {figures['drawn']} of {figures['pairs']} ({len(part.drawn) / len(train.dataset):.1%})"
        for (name, figures), part in zip(of_sets.items(), parts["train"], strict=True)
    )
    logger.info("%s\n%s\nan epoch: %s", ledger.summary(), describe(report), shares)
    if val_ratio and not (validation and len(validation.dataset)):
        logger.warning("no pair is left to validate on: raise val_ratio")
        validation = None
    return PreparedPreferences(train.dataset, validation.dataset if validation else None, report)


def epoch_counts(sizes: Mapping[str, int], weights: Mapping[str, float | None]) -> dict[str, int]:
    """Return how many pairs of each set make an epoch.

    Example:
        >>> epoch_counts({"a": 100, "b": 900}, {"a": 1.0, "b": 2.0})
        {'a': 100, 'b': 200}
        >>> epoch_counts({"a": 100, "b": 900}, {"a": None, "b": None})
        {'a': 100, 'b': 900}
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return dict(sizes)
    total = min(sizes[name] / weight for name, weight in given.items())
    # A hair more, so that 0.1 of 0.3 is not a pair short by rounding.
    return {name: min(sizes[name], int(total * weight + 1e-9)) for name, weight in given.items()}


def _check_weights(sets: Mapping[str, MixtureSet]) -> None:
    without = [name for name, one in sets.items() if one.weight is None]
    if without and len(without) < len(sets):
        raise ConfigError(
            f"dataset.mixture: {', '.join(without)} has no weight and others have: give every set a weight, or none, "
            "which takes all pairs of each"
        )


def _read(
    rows: Dataset, one: MixtureSet, quarantine: Quarantine, *, chat_template: bool, num_proc: int | None
) -> tuple[Dataset, str]:
    options = ShapeOptions(one.columns, one.ranking).check()
    kind = detect_rollout_kind(rows) if one.generated_data else detect_dataset_kind(rows, options)
    pairs, _ = to_preference_pairs(
        rows,
        kind=kind,
        chat_template=chat_template,
        num_proc=num_proc,
        quarantine=quarantine,
        options=options,
    )
    return pairs, kind


def _limited(pairs: Dataset, limit: int | None, seed: str) -> Dataset:
    if limit is None or limit >= len(pairs):
        return pairs
    return pairs.select(sorted(random.Random(seed).sample(range(len(pairs)), limit)))


def _common_form(sets: Mapping[str, MixtureSet], pairs: list[Dataset]) -> str:
    forms = {name: form_of(part) for name, part in zip(sets, pairs, strict=True)}
    if len({*forms.values()}) > 1:
        given = ", ".join(f"{form} in {name}" for name, form in forms.items())
        raise DataError(
            f"the sets of a mixture must have one form, got {given}: "
            "set dataset.chat_template=true, which makes conversations of text, or leave a set out"
        )
    return next(iter(forms.values()))


def _joined(pairs: list[Dataset]) -> Dataset:
    """Put sets one behind the other; a column that one of them lacks is empty there."""
    names = list(dict.fromkeys(name for part in pairs for name in part.column_names))
    features = {name: part.features[name] for part in pairs for name in part.column_names}
    whole = []
    for part in pairs:
        for name in names:
            if name not in part.column_names:
                empty = "" if name == EXTRAS else None
                part = part.add_column(name, [empty] * len(part), feature=features[name])
        whole.append(part.select_columns(names))
    return concatenate_datasets(whole)


def _drawn(sets: Mapping[str, MixtureSet], parts: list[_Part], seed: int) -> list[_Part]:
    sizes = {name: len(part.drawn) for name, part in zip(sets, parts, strict=True)}
    counts = epoch_counts(sizes, {name: one.weight for name, one in sets.items()})
    return [
        part._replace(drawn=_limited(part.drawn, counts[name], f"{seed}/{name}/draw"))
        for name, part in zip(sets, parts, strict=True)
    ]


def _together(parts: list[_Part], first_rows: list[int]) -> TokenizedPairs:
    """Return the drawn pairs of all sets as one, and the counts of all."""
    masked = any(MASK_FIELDS[0] in part.drawn.column_names for part in parts)
    whole = []
    for part, first in zip(parts, first_rows, strict=False):
        drawn = part.drawn.map(_moved, fn_kwargs={"by": first}, batched=True) if first else part.drawn
        for name in MASK_FIELDS if masked else ():
            if name not in drawn.column_names:
                feature = next(p.drawn.features[name] for p in parts if name in p.drawn.column_names)
                drawn = drawn.add_column(name, [None] * len(drawn), feature=feature)
        whole.append(drawn)
    counted = [part.tokenized for part in parts]
    return TokenizedPairs(
        concatenate_datasets(whole),
        counted[0].quarantine,
        sum(one.num_boundary_shifts for one in counted),
        sum(one.num_truncated for one in counted),
        sum(one.num_dropped_turns for one in counted),
    )


def _moved(batch: dict[str, Any], by: int) -> dict[str, Any]:
    return {"row": [row + by for row in batch["row"]]}
