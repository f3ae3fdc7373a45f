"""Reading the files of other evaluations strictly, and finding the records that go into them.

Every fault names the file and the entry. What the entries mean stands with each format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.eval.statistics.comparisons import distinct

Entry = dict[str, Any]


def entries_of_list(path: Path) -> list[tuple[str, Entry]]:
    """Return the entries of a JSON list, each with its place in words.

    Raises:
        DataError: If the file is no JSON list of objects.
    """
    value = _parse(_read(path), str(path))
    if not isinstance(value, list):
        raise DataError(f"{path} must hold a JSON list of entries, got {type(value).__name__}")
    named = [(f"{path}, entry {number}", entry) for number, entry in enumerate(value, start=1)]
    return [(place, as_object(entry, place)) for place, entry in named]


def entries_of_lines(path: Path) -> list[tuple[str, Entry]]:
    """Return the objects of a file of JSON lines, each with its place in words; empty lines are passed over.

    Raises:
        DataError: If a line is no JSON object.
    """
    # Split at line feeds alone: texts may hold the separators that splitlines() splits at too.
    lines = [(f"{path}, line {n}", line) for n, line in enumerate(_read(path).split("\n"), start=1)]
    return [(place, as_object(_parse(line, place), place)) for place, line in lines if line.strip()]


def as_object(value: Any, place: str) -> Entry:
    """Return ``value`` if it is a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{place} must be an object, got {str(value)[:80]!r}")
    return value


def string_field(entry: Mapping[str, Any], key: str, place: str, *, may_be_empty: bool = False) -> str:
    """Return a field that must be a string."""
    value = entry.get(key)
    if not isinstance(value, str) or not (value or may_be_empty):
        kind = "string" if may_be_empty else "non-empty string"
        given = f"got {str(value)[:80]!r}" if key in entry else "it is missing"
        raise DataError(f"{place}: {key!r} must be a {kind}, {given}")
    return value


def number_or_none(value: Any) -> float | None:
    """Return a finite JSON number; ``None`` for anything else, a truth value included.

    >>> number_or_none(2), number_or_none(True), number_or_none(float("nan"))
    (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def questions_between(
    judgements: Sequence[JudgementRecord], model: str, baseline: str, judge: str
) -> dict[tuple[str, int], list[JudgementRecord]]:
    """Return one judge's judgements between two models by prompt and sample, in sorted order.

    Raises:
        DataError: If there are none.
    """
    found: dict[tuple[str, int], list[JudgementRecord]] = {}
    for record in distinct(judgements):
        if record.judge == judge and {record.first, record.second} == {model, baseline}:
            found.setdefault((record.id, record.sample), []).append(record)
    if not found:
        raise DataError(f"there is no judgement of {judge!r} between {model!r} and {baseline!r} to export")
    return dict(sorted(found.items()))


def prompt_of(by_id: Mapping[str, PromptRecord], prompt_id: str) -> PromptRecord:
    """Return a prompt that must be there."""
    if prompt_id not in by_id:
        raise DataError(
            f"prompt {prompt_id!r} is not among the {len(by_id)} given prompts; give all that were used"
        )
    return by_id[prompt_id]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place} is no JSON: {error}") from None
