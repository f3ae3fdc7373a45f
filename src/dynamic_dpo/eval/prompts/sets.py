"""The prompts of an evaluation: loaded from any supported set, named by content, counted, and drawn by a seed.

Equal prompts are one prompt, rows that give none are quarantined, and the sample depends on seed and content
alone, never on the order of rows. What a row may look like stands in ``rows``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.data.arrow import iter_rows
from dynamic_dpo.data.ledger import Ledger
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.prompts.rows import PromptFields, read_prompt
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.hashing import content_hash

logger = logging.getLogger("dynamic_dpo")

_CATEGORY = re.compile(r"(?<![a-z])(harmless|helpful)(?![a-z])")


class PromptSet(NamedTuple):
    """Prompts and what was done to get them.

    Attributes:
        prompts: In the order of the draw, so that a smaller sample is the beginning of a larger one.
        report: Sources with rows and quarantined rows by reason; ``duplicates`` that fell together with another
            row; ``distinct`` prompts there were; ``drawn``; drawn prompts by category.
    """

    prompts: list[PromptRecord]
    report: dict[str, Any]


def load_prompts(
    name: str,
    *,
    split: str = "test",
    max_samples: int | None = None,
    seed: int = 42,
    post_field: str | None = None,
    summary_field: str | None = None,
    id_field: str | None = None,
    meta_fields: Sequence[str] = (),
    categories: Sequence[str] | None = None,
    turns: bool = False,
    quarantine_max_share: float = 0.05,
    report_dir: str | os.PathLike[str] | None = None,
) -> PromptSet:
    """Load the prompts of a set.

    Args:
        name: A file, folder or hub name, as ``load_rows`` takes it. Folders named after harmless or helpful rows,
            as in HH-RLHF, give their prompts that category.
        split: A split with an optional slice.
        max_samples: Prompts to draw; ``None`` for all.
        seed: Seed of the draw, which is also the order of the result.
        post_field: Field of the prompt; ``None``: found by the shape of each row.
        summary_field: Field of the known answer, which every row must then have; ``None``: found, may be missing.
        id_field: Field of an identifier to keep; two different prompts with one identifier are an error of the row.
        meta_fields: Fields to keep.
        turns: Whether all turns of a prompt are kept; see ``prompts.turns``.
        categories: Prompts of which categories are drawn from; ``None`` for all.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].
        report_dir: Folder for ``quarantine.jsonl`` and ``data_report.json``; ``None`` writes neither.

    Returns:
        Prompts and report.

    Raises:
        ConfigError: If a number is out of range.
        DataError: If the set cannot be read, no prompt is usable, or too large a share of the rows is not.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"dataset.max_samples must be at least 1 or null, got {max_samples}")
    found: dict[str, PromptRecord] = {}
    num_read = 0
    with Ledger(quarantine_max_share, report_dir) as ledger:
        for part in _parts(name):
            rows = load_rows(part, subset=split)
            quarantine = ledger.open_source(f"{part} [{split}]", len(rows))
            fields = PromptFields(
                post_field, summary_field, id_field, tuple(meta_fields), category_of(part), turns
            )
            num_read += _collect(iter_rows(rows), fields, found, quarantine)
    wanted = list(found.values())
    if categories is not None:
        wanted = [prompt for prompt in wanted if prompt.category in set(categories)]
        if not wanted:
            there = ", ".join(sorted({prompt.category or "none" for prompt in found.values()}))
            raise DataError(
                f"no prompt of {name} has a category of dataset.categories ({', '.join(categories)}); there are: "
                f"{there}"
            )
    drawn = draw(wanted, max_samples, seed)
    report = {
        "kind": "prompts",
        "sources": ledger.sources(),
        "duplicates": num_read - len(found),
        "distinct": len(found),
        "drawn": len(drawn),
        "categories": dict(sorted(Counter(prompt.category or "none" for prompt in drawn).items())),
        "settings": {"split": split, "max_samples": max_samples, "seed": seed},
    }
    ledger.write_report(report)
    logger.info(
        "%s\nprompts: %d drawn of %d, %d duplicates",
        ledger.summary(),
        len(drawn),
        len(found),
        report["duplicates"],
    )
    return PromptSet(drawn, report)


def ids_in_order(
    name: str,
    *,
    split: str = "test",
    post_field: str | None = None,
    summary_field: str | None = None,
    id_field: str | None = None,
    meta_fields: Sequence[str] = (),
    **how_they_are_drawn: Any,
) -> list[str]:
    """Return the prompts' ids in the order of the rows, whatever was drawn of them; ``""`` for rows without one.

    Args:
        name: As for `load_prompts`, whose arguments these are.
        split: A split with an optional slice.
        post_field: Field of the prompt.
        summary_field: Field of the known answer.
        id_field: Field of an identifier.
        meta_fields: Fields to keep.
        how_they_are_drawn: Other arguments of `load_prompts`, which change no id.

    Raises:
        DataError: If the set cannot be read.
    """
    ids = []
    for part in _parts(name):
        fields = PromptFields(post_field, summary_field, id_field, tuple(meta_fields), category_of(part))
        for row in iter_rows(load_rows(part, subset=split)):
            try:
                ids.append(read_prompt(row, fields).id)
            except BadRow:
                ids.append("")
    return ids


def draw(prompts: Iterable[PromptRecord], max_samples: int | None, seed: int) -> list[PromptRecord]:
    """Draw prompts at random by a hash of seed and content.

    Args:
        prompts: Prompts with distinct ids, in any order.
        max_samples: How many; ``None`` for all.
        seed: Another seed, another sample.

    Returns:
        The sample. It does not depend on the order given, and of two sizes the smaller begins the larger.

    Example:
        >>> prompts = [PromptRecord.of([{"role": "user", "content": text}]) for text in "abcdef"]
        >>> draw(prompts, 3, seed=1) == draw(prompts[::-1], 5, seed=1)[:3]
        True
    """
    return sorted(prompts, key=lambda prompt: content_hash([seed, prompt.id]))[:max_samples]


def write_prompts(path: str | Path, prompts: Iterable[PromptRecord]) -> Path:
    """Write one prompt a line; the file appears whole or not at all."""
    lines = (json.dumps(prompt.to_json(), ensure_ascii=False) + "\n" for prompt in prompts)
    return write_text(path, "".join(lines))


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read what `write_prompts` wrote.

    Raises:
        DataError: If the file is missing or a line is no prompt.
    """
    target = Path(path)
    if not target.is_file():
        raise DataError(f"no prompts at {target}: run the stage prepare first")
    prompts = []
    for number, line in enumerate(target.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            if line:
                prompts.append(PromptRecord.from_json(json.loads(line)))
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{target} line {number} is no prompt ({error}): run the stage prepare again"
            ) from None
    return prompts


def category_of(name: str) -> str | None:
    """Return what the name of an HH file or folder says about its rows.

    Example:
        >>> category_of("data/harmless-base/test.jsonl.gz"), category_of("data/helpful-and-harmless")
        ('harmless', None)
    """
    words = {word for part in Path(name).parts[-2:] for word in _CATEGORY.findall(part.lower())}
    return words.pop() if len(words) == 1 else None


def _parts(name: str) -> list[str]:
    """Return the folders of harmless and helpful rows below a folder, or the set itself."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or category_of(folder.name):
        return [name]
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    named = [path for path in below if category_of(path.name)]
    left = [path.name for path in below if path not in named and not path.name.startswith(".")]
    if named and left:
        logger.warning(
            "%s: left out are the folders %s, whose names say neither harmless nor helpful",
            name,
            ", ".join(left),
        )
    return [str(path) for path in named] or [name]


def _collect(
    rows: Iterable[Any], fields: PromptFields, found: dict[str, PromptRecord], quarantine: Quarantine
) -> int:
    """Read rows into ``found``; return how many gave a prompt."""
    owners = {prompt.meta["source_id"]: id_ for id_, prompt in found.items() if "source_id" in prompt.meta}
    num_read = 0
    for index, row in enumerate(rows):
        try:
            prompt = read_prompt(row, fields)
            source_id = prompt.meta.get("source_id")
            if source_id is not None and owners.setdefault(source_id, prompt.id) != prompt.id:
                raise BadRow("duplicate_id", source_id)
        except BadRow as bad:
            quarantine.add(index, bad.reason, bad.excerpt)
            continue
        num_read += 1
        # Rows with one prompt differ in what they know about it; which is kept must not hang on their order.
        earlier = found.get(prompt.id, prompt)
        found[prompt.id] = min(earlier, prompt, key=lambda record: content_hash(record.to_json()))
    return num_read
