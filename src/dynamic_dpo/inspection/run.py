"""A whole inspection: prepare the set as a training would, count it, compare it, and write down what was found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from dynamic_dpo.data import load_rows
from dynamic_dpo.data.arrow import JSON_COLUMN
from dynamic_dpo.data.prepare import PreparedPreferences
from dynamic_dpo.inspection.figures import REFUSALS, Inspector, PairFigures
from dynamic_dpo.inspection.overlap import PromptIndex
from dynamic_dpo.inspection.page import Inspection, findings, inspection_page
from dynamic_dpo.inspection.similarity import PairSimilarity, pair_similarities
from dynamic_dpo.inspection.texts import iter_texts, without_frame, without_special_tokens
from dynamic_dpo.utils.files import replacing, write_json, write_text

REPORT, PAGE = "inspection.json", "inspection.html"
NUM_SHOWN = 20


class InspectionSettings(NamedTuple):
    """What is looked for.

    Attributes:
        ngram: Words in a row that make an overlap.
        refusals: Regular expressions of a refusal.
        similar_pairs: Pairs whose states are compared, drawn at random.
        seed: Of what is drawn.
    """

    ngram: int = 8
    refusals: tuple[str, ...] = REFUSALS
    similar_pairs: int = 256
    seed: int = 0


class Inspected(NamedTuple):
    """What an inspection has left.

    Attributes:
        page: The page.
        report: The file of numbers.
        findings: What to look at first, one sentence each.
        overlapping: Rows that a prompt of an evaluation was found in.
    """

    page: Path
    report: Path
    findings: list[str]
    overlapping: list[int]


def inspect_preferences(
    prepare: Callable[[str | Path], PreparedPreferences],
    name: str,
    tokenizer: Any,
    out: str | Path,
    *,
    evaluation: Sequence[str] = (),
    open_model: Callable[[], Any] | None = None,
    settings: InspectionSettings | None = None,
) -> Inspected:
    """Inspect a set of preference pairs, and write ``inspection.html`` and ``inspection.json``.

    Args:
        prepare: Prepares the set, and leaves its report in the folder that it is given.
        name: What the set is called on the page.
        tokenizer: The policy's tokenizer.
        out: Folder of page, numbers, ``data_report.json`` and ``quarantine.jsonl``.
        evaluation: Texts of prompts that must not be trained on.
        open_model: Loads the model whose states are compared; ``None`` compares none.
        settings: What is looked for.

    Returns:
        Where it is, and what to look at first.

    Raises:
        DataError: If the set cannot be used.
    """
    settings = settings or InspectionSettings()
    prepared = prepare(out)
    index = PromptIndex(evaluation, n=settings.ngram) if evaluation else None
    inspector = Inspector(tokenizer, refusals=settings.refusals, evaluation=index)
    sets = {"train": prepared.train, "validation": prepared.validation}
    parts = {
        name: inspector.count(iter_texts(pairs, tokenizer))
        for name, pairs in sets.items()
        if pairs is not None
    }
    found = Inspection(
        name=name,
        report=prepared.report,
        parts=parts,
        leaked=_leaked(prepared.train, prepared.validation, tokenizer, settings.ngram),
        shown=list(iter_texts(_drawn(prepared.train, NUM_SHOWN, settings.seed), tokenizer)),
        similarities=_similarities(prepared.train, open_model, settings),
        evaluation=evaluation,
        settings=settings._asdict(),
    )
    folder = Path(out)
    return Inspected(
        write_text(folder / PAGE, inspection_page(found)),
        write_json(folder / REPORT, _numbers(found)),
        findings(found),
        sorted({overlap.row for overlap in parts["train"].overlaps}),
    )


def write_others(dataset_name: str, subset: str, rows: Sequence[int], path: str | Path) -> int:
    """Write the rows of a set but for some, as they are, one JSON object a line; returns how many were written.

    Args:
        dataset_name: See `load_rows`.
        subset: See `load_rows`.
        rows: Numbers of the rows to leave out.
        path: The file.
    """
    left_out, count = set(rows), 0
    with replacing(path) as file:
        for number, row in enumerate(load_rows(dataset_name, subset=subset)):
            if number not in left_out:
                file.write(_line(row) + "\n")
                count += 1
    return count


def _line(row: Mapping[str, Any]) -> str:
    written = row.get(JSON_COLUMN)
    if written is None:
        return json.dumps(row, ensure_ascii=False, default=str)
    # An element of an array may stand on several lines.
    text = written.decode("utf-8", "replace").strip()
    return text if "\n" not in text else json.dumps(json.loads(text), ensure_ascii=False)


def _leaked(train: Dataset, validation: Dataset | None, tokenizer: Any, ngram: int) -> list[int]:
    """Return the rows to train on whose prompt has a run of words in common with one of the validation."""
    if validation is None or not len(validation):
        return []
    rows, texts = [], []
    for part in (train, validation):
        for pair in iter_texts(part.select_columns([*_NEEDED]), tokenizer):
            rows.append(pair.row)
            texts.append(pair.prompt)
    bare = [without_special_tokens(text, tokenizer) for text in without_frame(texts)]
    index = PromptIndex(bare[len(train) :], n=ngram)
    return [row for row, text in zip(rows[: len(train)], bare, strict=False) if index.find(text) is not None]


_NEEDED = ("row", "prompt_ids", "chosen_ids", "rejected_ids")


def _drawn(pairs: Dataset, count: int, seed: int) -> Dataset:
    places = random.Random(seed).sample(range(len(pairs)), min(count, len(pairs)))
    return pairs.select(sorted(places))


def _similarities(
    pairs: Dataset, open_model: Callable[[], Any] | None, settings: InspectionSettings
) -> list[PairSimilarity]:
    if open_model is None:
        return []
    drawn = _drawn(pairs, settings.similar_pairs, settings.seed)
    scores = pair_similarities(open_model(), iter(drawn), total=len(drawn))
    return sorted(scores, key=lambda pair: (-pair.ches, pair.row))


def _numbers(found: Inspection) -> dict[str, Any]:
    def of(part: PairFigures) -> dict[str, Any]:
        return part.to_json()

    return {
        "format_version": 1,
        "name": found.name,
        "findings": findings(found),
        "report": dict(found.report),
        "parts": {name: of(part) for name, part in found.parts.items()},
        "leaked": list(found.leaked),
        "similarities": [pair._asdict() for pair in found.similarities],
        "evaluation_prompts": len(found.evaluation),
        "settings": dict(found.settings),
    }
