"""The reference store: found by content, whole or not there, and never computed twice."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from dynamic_dpo.engine.reference_store import (
    ReferenceEntry,
    ReferenceStore,
    compute_entries,
    default_reference_dir,
    pair_key,
)
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import CheckpointError


def store_in(root: Path, **identity: str) -> ReferenceStore:
    return ReferenceStore(root, **{"fingerprint": "weights", "dtype": "float32", **identity})


def keys(count: int) -> list[bytes]:
    return [pair_key([i], [i + 1], [i + 2]) for i in range(count)]


def entry(i: int) -> ReferenceEntry:
    return ReferenceEntry(-0.1 * i, -math.pi * i, i + 1, i + 2)


def filled(root: Path, count: int = 3) -> ReferenceStore:
    store = store_in(root)
    store.add((key, entry(i)) for i, key in enumerate(keys(count)))
    store.flush()
    return store


def shards(store: ReferenceStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def pairs(count: int) -> PairBatch:
    ids = [[i] for i in range(count)]
    return PairBatch(ids, [[i + 1] for i in range(count)], [[i + 2] for i in range(count)], range(count))


def test_what_was_saved_is_found_again_to_the_last_bit(tmp_path: Path) -> None:
    filled(tmp_path)
    again = store_in(tmp_path)
    assert len(again) == 3
    for i, key in enumerate(keys(3)):
        assert key in again
        assert again[key] == entry(i)


@pytest.mark.parametrize("identity", [{"fingerprint": "other"}, {"dtype": "float32+bfloat16"}])
def test_another_reference_or_arithmetic_finds_nothing(tmp_path: Path, identity: dict[str, str]) -> None:
    filled(tmp_path)
    assert len(store_in(tmp_path, **identity)) == 0


def test_another_version_of_the_scoring_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr("dynamic_dpo.engine.reference_store.SCORING_VERSION", 999)
    assert len(store_in(tmp_path)) == 0


def test_a_key_tells_where_the_tokens_were_cut() -> None:
    assert pair_key([1, 2], [3], [4]) != pair_key([1], [2, 3], [4])
    assert pair_key([1], [2], [3]) != pair_key([1], [3], [2])
    assert pair_key([1], [2], [3]) == pair_key(np.array([1]), np.array([2]), np.array([3]))
    assert len(pair_key([1], [2], [3])) == 32


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_shard_is_removed_and_its_pairs_are_missing(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (shard,) = shards(filled(tmp_path))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-9]), "empty": b""}[damage])
    again = store_in(tmp_path)
    assert len(again) == 0
    assert not shard.exists()
    assert "damaged" in caplog.text
    again.add([(keys(1)[0], entry(0))])
    again.flush()
    assert len(store_in(tmp_path)) == 1


def test_damage_to_one_shard_costs_no_other(tmp_path: Path) -> None:
    first = filled(tmp_path, 3)
    (broken,) = shards(first)
    second = store_in(tmp_path)
    second.add([(keys(4)[3], entry(3))])
    second.flush()
    broken.write_bytes(b"x")
    again = store_in(tmp_path)
    assert [key in again for key in keys(4)] == [False, False, False, True]


def test_a_foreign_file_is_left_alone_and_used_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib

    store = filled(tmp_path)
    data = save({"weights": np.zeros(3)})
    foreign = store.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    foreign.write_bytes(data)
    note = store.folder / "notes.txt"
    note.write_text("mine")
    assert len(store_in(tmp_path)) == 3
    assert foreign.exists()
    assert note.read_text() == "mine"
    assert "not one of ours" in caplog.text


def test_a_failed_write_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    store.add([(keys(1)[0], entry(0))])

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left.*engine.reference_dir"):
        store.flush()
    assert list(store.folder.iterdir()) == []
    monkeypatch.undo()
    store.flush()  # what could not be saved is still there to be saved
    assert len(store_in(tmp_path)) == 1


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.flush()
    assert not store.folder.exists()
    store = filled(tmp_path)
    store.flush()
    assert len(shards(store)) == 1


def test_a_parallel_runs_shards_appear_on_a_second_look(tmp_path: Path) -> None:
    ours = store_in(tmp_path)
    filled(tmp_path)
    assert len(ours) == 0
    ours.reload()
    assert len(ours) == 3


def test_a_file_in_the_stores_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        store_in(tmp_path / "store")


def test_the_users_cache_folder_holds_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNAMIC_DPO_CACHE", str(tmp_path / "a"))
    assert default_reference_dir() == tmp_path / "a" / "reference"
    monkeypatch.delenv("DYNAMIC_DPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_reference_dir() == tmp_path / "b" / "dynamic-dpo" / "reference"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert default_reference_dir() == tmp_path / "c" / ".cache" / "dynamic-dpo" / "reference"


def test_entries_go_to_the_pairs_they_were_computed_for_whatever_the_plan(tmp_path: Path) -> None:
    store, told = store_in(tmp_path), []

    def score(part: PairBatch) -> list[ReferenceEntry]:
        return [entry(row) for row in part.rows]

    compute_entries(pairs(4), [[3, 1], [0], [2]], score, store, keys(4), progress=told.append)
    assert [store[key] for key in keys(4)] == [entry(i) for i in range(4)]
    assert told == [2, 1, 1]
    assert len(store_in(tmp_path)) == 4


def test_an_interrupted_pass_keeps_what_it_had(tmp_path: Path) -> None:
    store = store_in(tmp_path)

    def score(part: PairBatch) -> list[ReferenceEntry]:
        if 2 in part.rows:
            raise KeyboardInterrupt
        return [entry(row) for row in part.rows]

    with pytest.raises(KeyboardInterrupt):
        compute_entries(pairs(4), [[0, 1], [2], [3]], score, store, keys(4), progress=lambda _: None)
    again = store_in(tmp_path)
    assert [key in again for key in keys(4)] == [True, True, False, False]


def test_a_long_pass_is_saved_as_it_goes(tmp_path: Path) -> None:
    store, on_disk = store_in(tmp_path), []

    def score(part: PairBatch) -> list[ReferenceEntry]:
        on_disk.append(len(store_in(tmp_path)))
        return [entry(row) for row in part.rows]

    plan = [[0], [1], [2]]
    compute_entries(pairs(3), plan, score, store, keys(3), progress=lambda _: None, flush_seconds=-1.0)
    assert on_disk == [0, 1, 2]
