"""Many processes on one reference store, and damage to its files: nothing wrong is ever read."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dynamic_dpo.engine.reference_store import ReferenceEntry, ReferenceStore, pair_key
from torture.corruption import KINDS, corrupt
from torture.processes import Forked

PAIRS = 64


def true_entry(i: int) -> ReferenceEntry:
    return ReferenceEntry(-0.1 * i - 1 / 3, -(i**0.5), i + 1, i + 2)


def _keys() -> list[bytes]:
    return [pair_key([i], [i + 1], [i + 2]) for i in range(PAIRS)]


def _open(root: Path) -> ReferenceStore:
    return ReferenceStore(root, fingerprint="weights", dtype="float32")


def _use(root: Path, rounds: int, seed: int) -> None:
    """Look pairs up, add what is missing, and damage a shard now and then; fail on any value that is not true."""
    draw, keys = random.Random(seed), _keys()
    for _ in range(rounds):
        store = _open(root)
        wanted = draw.sample(range(PAIRS), 8)
        wrong = [i for i in range(PAIRS) if keys[i] in store and store[keys[i]] != true_entry(i)]
        assert not wrong, wrong
        store.add((keys[i], true_entry(i)) for i in wanted if keys[i] not in store)
        store.flush()
        again = _open(root)
        shards = sorted(again.folder.glob("*.safetensors"))
        if shards and draw.random() < 0.2:
            path = draw.choice(shards)
            try:
                data = path.read_bytes()
                path.write_bytes(data[: draw.randrange(len(data))])
            except (FileNotFoundError, ValueError):
                continue  # Another process was faster.


def share(processes: int, rounds: int) -> list[int]:
    """Let so many processes use one store for so many rounds each; return their exit codes."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        children = [
            Forked(partial(_use, root / "store", rounds, seed), root / f"output-{seed}")
            for seed in range(processes)
        ]
        codes = [child.wait(600) for child in children]
        assert not any(codes), [child.output.read_text()[-500:] for child in children]
        return codes


@dataclass
class Damage:
    """Corruptions made, and those after which a wrong value was read."""

    made: int = 0
    believed: int = 0


def damage_store(count: int, seed: int = 0) -> Damage:
    """Damage a store of several shards so many times, each on a fresh copy, and read it."""
    draw, keys, outcome = random.Random(seed), _keys(), Damage()
    for number in range(count):
        with tempfile.TemporaryDirectory() as scratch:
            store = _open(Path(scratch))
            for start in range(0, 12, 4):
                store.add((keys[i], true_entry(i)) for i in range(start, start + 4))
                store.flush()
            corrupt(store.folder, KINDS[number % len(KINDS)], draw)
            again = _open(Path(scratch))
            outcome.made += 1
            outcome.believed += any(keys[i] in again and again[keys[i]] != true_entry(i) for i in range(12))
            # At most the damaged shards' pairs are to be computed again.
            assert len(again) >= 4
    return outcome
