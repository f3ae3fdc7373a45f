"""Where rows come from: a hub name, a local file, a folder of files, or a saved dataset.

One function, ``load_rows``, with the same ``subset`` slices for all of them. Rows come as they are written;
``preference`` and ``sft_dataset`` decide what they mean and whether they are any good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    ReadInstruction,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from dynamic_dpo.data.arrow import write_json_lines
from dynamic_dpo.data.json_files import read_json_rows
from dynamic_dpo.data.named_files import local_file
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.scratch import scratch_path

PAIRS_FILE: Final = "pairs.jsonl"
"""In the folder of a rollout: its pairs."""

ROLLOUT_NOTES: Final = "manifest.json"
"""In the folder of a rollout: what it was made with. Where both files are, all others are how the pairs were made."""

_JSON_SUFFIXES: Final = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_SUFFIXES: Final = (*_JSON_SUFFIXES, ".parquet")
_SPLIT_WORDS: Final = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
_SUBSET_FORMS: Final = "'train', 'train[:30%]', 'train[100:200]', 'train[-10%:]' or 'validation[:50]'"


def load_rows(dataset_name: str, *, subset: str = "train", config_name: str | None = None) -> Dataset:
    """Load the rows of a dataset by name or path.

    Args:
        dataset_name: A local ``.json``, ``.jsonl`` (either also ``.gz``) or ``.parquet`` file; a folder of
            such files, whose names say their split (``train-00.jsonl.gz``, ``validation.jsonl``; without such
            names all are ``train``); the folder of a rollout, whose ``pairs.jsonl`` is read; a folder written by
            ``save_to_disk``; a name on the hub; or one file on the hub or in an installed package (see
            ``named_files``).
        subset: A split with an optional slice, as in ``train[:30%]``. A single file has every split name.
        config_name: Configuration of a hub dataset that has several.

    Returns:
        The rows in the order of the source. Parquet, saved and hub sets keep their columns. JSON sets have the
        one column ``json_line`` with undecoded rows (see ``arrow.decode_rows``), so that one odd row fails
        alone.

    Raises:
        DataError: If there is no such file, folder, split or dataset, if a file is damaged or empty, or if
            the subset is malformed or selects nothing.
    """
    path = _pairs_of_rollout(local_file(dataset_name))
    if path.is_file():
        rows = _select(subset, _Files({split_of(subset): [path]}), dataset_name)
    elif path.is_dir() and _is_saved_dataset(path):
        rows = _select(subset, _Saved(path), dataset_name)
    elif path.is_dir():
        rows = _select(subset, _Files(_files_by_split(path)), dataset_name)
    elif _is_meant_as_path(dataset_name):
        raise DataError(
            f"no file or folder {dataset_name!r}: give a local {', '.join(_SUFFIXES)} file, a folder of such "
            "files, or the name of a hub dataset"
        )
    else:
        rows = _from_hub(dataset_name, config_name, subset)
    if not len(rows):
        raise DataError(f"subset {subset!r} of {dataset_name!r} selects no rows: widen the slice")
    return rows


def split_of(subset: str) -> str:
    """Return the name of the split that a subset such as ``train[:30%]`` slices.

    Raises:
        DataError: If the subset does not begin with a name.

    Example:
        >>> split_of("validation[:50]")
        'validation'
    """
    match = re.match(r"\w[\w.-]*", subset)
    if match is None:
        raise DataError(f"subset {subset!r} is not understood: write {_SUBSET_FORMS}")
    return match[0]


def load_evaluation_rows(dataset_name: str) -> Dataset:
    """Load the rows to validate on: all of a file, else the split ``validation``, ``test`` or ``train``.

    Raises:
        DataError: As ``load_rows``; also if there is none of these splits.
    """
    path = _pairs_of_rollout(Path(dataset_name).expanduser())
    if path.is_file():
        return load_rows(dataset_name, subset="all")
    if path.is_dir():
        splits = (_Saved(path) if _is_saved_dataset(path) else _Files(_files_by_split(path))).names
    elif _is_meant_as_path(dataset_name):
        splits = ["train"]
    else:
        try:
            splits = get_dataset_split_names(dataset_name)
        except Exception as error:  # As in _from_hub: whatever it is, it is about the name given.
            raise DataError(f"the splits of dataset {dataset_name!r} could not be read: {error}") from error
    split = next((split for split in ("validation", "test", "train") if split in splits), None)
    if split is None:
        raise DataError(
            f"{dataset_name!r} has no split 'validation', 'test' or 'train' to validate on, only "
            f"{', '.join(map(repr, splits))}: give a file, or use val_ratio"
        )
    return load_rows(dataset_name, subset=split)


class _Files:
    """Data files by split; a split is read when it is asked for."""

    def __init__(self, files: dict[str, list[Path]]) -> None:
        self._files = files
        self.names = list(files)

    def load(self, split: str) -> Dataset:
        files = self._files[split]
        if all(_suffix(file) == ".parquet" for file in files):
            return concatenate_datasets([_read_parquet(file) for file in files])
        if any(_suffix(file) == ".parquet" for file in files):
            raise DataError(
                f"split {split!r} mixes .parquet and JSON files ({files[0].name} …): keep one format a split"
            )
        return write_json_lines(chain.from_iterable(_read_nonempty(file) for file in files))


class _Saved:
    """A folder that ``save_to_disk`` wrote: one dataset, or one a split."""

    def __init__(self, path: Path) -> None:
        try:
            saved = load_from_disk(str(path))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataError(f"saved dataset {str(path)!r} cannot be read: {error}") from error
        self._splits = dict(saved) if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        self.names = list(self._splits)

    def load(self, split: str) -> Dataset:
        return self._splits[split]


def _select(subset: str, source: _Files | _Saved, name: str) -> Dataset:
    """Apply a subset to a local source, with the datasets library's own reading of slices."""
    wanted = split_of(subset)
    if wanted == "all":
        rows = concatenate_datasets([source.load(split) for split in source.names])
    elif wanted in source.names:
        rows = source.load(wanted)
    else:
        raise DataError(
            f"{name!r} has no split {wanted!r}, only {', '.join(map(repr, source.names))}: change the subset"
        )
    try:
        parts = ReadInstruction.from_spec(subset).to_absolute({wanted: len(rows)})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"subset {subset!r} of {name!r} is not understood ({error}): write {_SUBSET_FORMS}"
        ) from error
    slices = [rows.select(range(part.from_, part.to)) for part in parts if part.from_ < part.to]
    return concatenate_datasets(slices) if slices else rows.select([])


def _from_hub(name: str, config_name: str | None, subset: str) -> Dataset:
    try:
        rows = load_dataset(name, config_name, split=subset)
    # Not found, no permission, unknown split or configuration, offline, broken upstream file: the library has
    # a dozen types for these and every one of them is about what the user asked for.
    except Exception as error:
        raise DataError(
            f"dataset {name!r} (subset {subset!r}) could not be loaded: {error}. It is no local file or folder "
            "either; check the name, the split, the network and your access to it"
        ) from error
    assert isinstance(rows, Dataset)
    return rows


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Group the data files below a folder by the split that their names say."""
    relative = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = [path for path in relative if _suffix(path) and not any(p.startswith(".") for p in path.parts)]
    if not files:
        raise DataError(f"folder {str(folder)!r} holds no {', '.join(_SUFFIXES)} file")
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_split_word(path), []).append(folder / path)
    named = {split: paths for split, paths in groups.items() if split}
    # Other files beside named ones (a log, an index) belong to no split; alone they are the training set.
    return named or {"train": groups[""]}


def _pairs_of_rollout(path: Path) -> Path:
    """Return the pairs of a rollout's folder; any other path as it is."""
    is_rollout = all((path / name).is_file() for name in (PAIRS_FILE, ROLLOUT_NOTES))
    return path / PAIRS_FILE if is_rollout else path


def _split_word(path: Path) -> str:
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return ""


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")


def _is_meant_as_path(name: str) -> bool:
    return bool(_suffix(Path(name))) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _read_nonempty(path: Path) -> Iterator[bytes]:
    if not _suffix(path):
        raise DataError(
            f"{str(path)!r} is of no known kind: expected a name ending in {', '.join(_SUFFIXES)}"
        )
    rows = read_json_rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{str(path)!r} is empty: expected one JSON object a line, or one array of objects")
    yield first
    yield from rows


def _read_parquet(path: Path) -> Dataset:
    try:
        num_rows = pq.read_metadata(path).num_rows
        if num_rows:
            folder = str(scratch_path("parquet").with_suffix(""))
            return cast(Dataset, Dataset.from_parquet(str(path), cache_dir=folder))
    except (pa.ArrowException, OSError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise DataError(f"{str(path)!r} is not a readable .parquet file: {cause}") from error
    raise DataError(f"{str(path)!r} is empty: it has no rows")
