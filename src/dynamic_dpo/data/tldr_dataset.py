"""Posts with reference summaries, for evaluation: one row a post, named by its content.

The fields are found by their usual names or given; the sample is drawn by a seed and does not depend on the
order of the rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from datasets import Dataset

from dynamic_dpo.data.arrow import iter_rows
from dynamic_dpo.data.quarantine import BadRow, Quarantine
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.errors import ConfigError, DataError

logger = logging.getLogger("dynamic_dpo")

POST_FIELDS: Final = ("post", "info.post", "content", "document", "article", "prompt", "text")
SUMMARY_FIELDS: Final = (
    "summary",
    "reference_summary",
    "label",
    "completion",
    "tldr",
    "highlights",
    "ideal_summary",
)
_COLUMNS: Final = ("id", "post", "summary")


def load_tldr_dataset(
    dataset_name: str,
    *,
    split: str = "train",
    max_samples: int | None = None,
    seed: int = 42,
    post_field: str | None = None,
    summary_field: str | None = None,
    id_field: str | None = None,
    meta_fields: Sequence[str] = (),
    config_name: str | None = None,
) -> Dataset:
    """Load posts and their reference summaries.

    Args:
        dataset_name: A file, folder or hub name, as ``load_rows`` takes it.
        split: A split with an optional slice, as in ``validation[:50%]``.
        max_samples: Rows to draw; None for all. They are drawn by ``seed`` and content: the same ones whatever
            the order of the file, and a larger sample contains the smaller.
        seed: Seed of the draw, which is also the order of the result.
        post_field: Field of the post; a dot reaches into an object (``info.post``). None: found by name.
        summary_field: Field of the reference summary. None: found by name.
        id_field: Field with an id of its own. None: a hash of the post.
        meta_fields: Fields to keep as columns of their own, by their last name.
        config_name: Configuration of a hub dataset.

    Returns:
        Columns ``id, post, summary`` (text) and the meta fields. Rows without post or summary, and rows with
        an id that came before, are logged by reason and left out.

    Raises:
        DataError: If a field cannot be found, or no row is usable.
        ConfigError: If ``max_samples`` is below 1, or a meta field takes the name of a column.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"max_samples must be at least 1 or null, got {max_samples}")
    names = [field.rpartition(".")[2] for field in meta_fields]
    if clash := sorted(set(names) & set(_COLUMNS)) or sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"meta_fields name the column {clash[0]!r} twice; {', '.join(_COLUMNS)} are taken")
    rows = load_rows(dataset_name, subset=split, config_name=config_name)
    first = next((row for row in iter_rows(rows) if isinstance(row, Mapping)), {})
    post_field = post_field or _find(first, POST_FIELDS, "post_field", dataset_name)
    summary_field = summary_field or _find(first, SUMMARY_FIELDS, "summary_field", dataset_name)

    quarantine = Quarantine(dataset_name)
    records: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(iter_rows(rows)):
        try:
            record = _record(row, post_field, summary_field, id_field)
            if record["id"] in records:
                raise BadRow("duplicate_id", record["id"])
        except BadRow as bad:
            quarantine.add(index, bad.reason, bad.excerpt)
            continue
        meta = {name: field_at(row, field) for name, field in zip(names, meta_fields, strict=True)}
        records[record["id"]] = {**record, **meta}
    if len(quarantine):
        logger.warning("%s", quarantine.summary(total=len(rows)))
    if not records:
        quarantine.raise_if_above(0.0, len(rows))
    drawn = sorted(records, key=lambda id_: _hash(f"{seed}\n{id_}"))[:max_samples]
    return Dataset.from_list([records[id_] for id_ in drawn])


def _record(row: Any, post_field: str, summary_field: str, id_field: str | None) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("not_an_object", row)
    post, summary = (_text(row, field) for field in (post_field, summary_field))
    if id_field is None:
        return {"id": _hash(post), "post": post, "summary": summary}
    id_ = field_at(row, id_field)
    if id_ is None:
        raise BadRow("missing_field", f"{id_field} is missing in {row!r}")
    return {"id": str(id_), "post": post, "summary": summary}


def _text(row: Mapping[str, Any], field: str) -> str:
    value = field_at(row, field)
    if value is None or value == "":
        raise BadRow("missing_field", f"{field} is missing in {row!r}")
    if not isinstance(value, str):
        raise BadRow("not_text", f"{field} is {type(value).__name__}: {value!r}")
    return value


def field_at(row: Any, path: str) -> Any:
    """Return the value at a dotted path, or None; a field that has the dot in its own name comes first."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, _, rest = path.partition(".")
    return field_at(row.get(head), rest) if rest and isinstance(row, Mapping) else None


def _find(row: Mapping[str, Any], candidates: Sequence[str], option: str, name: str) -> str:
    for field in candidates:
        if isinstance(field_at(row, field), str):
            return field
    raise DataError(
        f"{name!r} has none of the fields {', '.join(candidates)} as text, only {sorted(row)}: set {option}"
    )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
