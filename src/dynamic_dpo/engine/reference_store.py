"""The reference's log-probabilities: computed once per pair and reference, kept on disk, shared by runs.

An entry is found by content: the pair's token ids and which of them are scored, the fingerprint of the reference's
weights, the arithmetic's dtype, the weight of a longer answer's tail where it is not 1, and the version of the
scoring. Beta, learning rate, seed, method, fresh adapters and output folders are no part of it. Shards are named by
their own hash and written atomically: runs may share a folder, and a damaged shard is computed again, not used.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_shard
from safetensors.numpy import save as pack_shard

from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import CheckpointError, NonFiniteError
from dynamic_dpo.utils.files import cache_folder, sync
from dynamic_dpo.utils.signals import deferred, raise_if_requested

logger = logging.getLogger("dynamic_dpo")

SCORING_VERSION = 1


class ReferenceEntry(NamedTuple):
    """The reference's summed log-probabilities of a pair's completions, and the tokens behind them."""

    chosen_logp: float
    rejected_logp: float
    chosen_length: int
    rejected_length: int

    @property
    def is_finite(self) -> bool:
        """Whether both sums are numbers."""
        return math.isfinite(self.chosen_logp) and math.isfinite(self.rejected_logp)


def default_reference_dir() -> Path:
    """Return the user's cache folder for reference log-probabilities; ``DYNAMIC_DPO_CACHE`` overrides it."""
    return cache_folder("reference")


def pair_key(
    prompt: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    masks: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> bytes:
    """Return the SHA-256 of a pair's token ids after truncation, and of what is not scored of them, 32 bytes.

    Lengths are hashed too: the same tokens cut elsewhere are another pair. A mask that leaves nothing out is none.
    """
    digest = hashlib.sha256(np.array([len(prompt), len(chosen), len(rejected)], np.int64).tobytes())
    for ids in (prompt, chosen, rejected):
        digest.update(np.asarray(ids, np.int32).tobytes())
    for side, mask in enumerate(masks):
        if mask is not None and not all(mask):
            digest.update(bytes([side]) + np.asarray(mask, np.int8).tobytes())
    return digest.digest()


class ReferenceStore:
    """Reference log-probabilities of one reference model in one arithmetic, on disk and in memory.

    Args:
        root: Folder that holds all stores; made when something is saved.
        fingerprint: Fingerprint of the reference's weights.
        dtype: Name of the arithmetic, such as ``float32`` or ``float32+bfloat16``.
        tail_weight: Weight of a completion's tokens beyond the length of the pair's shorter one.

    Raises:
        CheckpointError: If ``root`` exists and is no folder.
    """

    def __init__(self, root: str | Path, *, fingerprint: str, dtype: str, tail_weight: float = 1.0) -> None:
        identity = f"{fingerprint}|{dtype}|{SCORING_VERSION}"
        if tail_weight != 1.0:
            identity += f"|tails {tail_weight!r}"
        self.folder = Path(root).expanduser() / hashlib.sha256(identity.encode()).hexdigest()[:32]
        if Path(root).expanduser().exists() and not Path(root).expanduser().is_dir():
            raise CheckpointError(
                f"the reference store {root} is a file; give a folder (engine.reference_dir)"
            )
        self._entries: dict[bytes, ReferenceEntry] = {}
        self._unsaved: dict[bytes, ReferenceEntry] = {}
        self._seen_shards: set[str] = set()
        self._remove_leftovers()
        self.reload()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __getitem__(self, key: bytes) -> ReferenceEntry:
        return self._entries[key]

    def _remove_leftovers(self) -> None:
        """Remove what killed writers left; another run's write in progress is younger than a day."""
        for path in self.folder.glob("*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > 86400:
                    path.unlink()
            except OSError:
                continue  # Taken away by another run, or not ours to remove: nothing depends on it.

    def reload(self) -> None:
        """Read shards that appeared since the last call; damaged ones are removed with a warning."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen_shards:
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CheckpointError(
                    f"the reference store's {path} cannot be read: {error}. Grant the permission, or set "
                    "engine.reference_dir to another folder"
                ) from error
            self._seen_shards.add(path.name)
            if hashlib.sha256(data).hexdigest() != path.stem:
                logger.warning("reference shard %s is damaged; removed, its pairs are computed again", path)
                with suppress(OSError):  # In a folder that may only be read it stays, and is not used either.
                    path.unlink(missing_ok=True)
                continue
            self._entries.update(_unpack(data, path))

    def add(self, entries: Iterable[tuple[bytes, ReferenceEntry]]) -> None:
        """Take in new entries; they reach the disk with `flush`.

        Raises:
            NonFiniteError: If one is NaN or infinite; none of them is taken in then.
        """
        fresh = dict(entries)
        if bad := sum(not entry.is_finite for entry in fresh.values()):
            raise NonFiniteError(
                f"{bad} of {len(fresh)} reference log-probabilities are NaN or infinite and cannot be stored"
            )
        self._entries.update(fresh)
        self._unsaved.update(fresh)

    def flush(self) -> None:
        """Write what is new as one shard: to a temporary name, synced, then renamed."""
        if not self._unsaved:
            return
        data = _pack(self._unsaved)
        name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            sync(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"the reference store cannot be written to {self.folder}: {error}. "
                "Set engine.reference_dir to a folder with space and permission"
            ) from error
        self._seen_shards.add(name)
        self._unsaved.clear()


def _pack(entries: dict[bytes, ReferenceEntry]) -> bytes:
    values = np.array([entry[:2] for entry in entries.values()], np.float64)
    lengths = np.array([entry[2:] for entry in entries.values()], np.int32)
    keys = np.frombuffer(b"".join(entries), np.uint8).reshape(-1, 32)
    data: bytes = pack_shard({"keys": keys, "logps": values, "lengths": lengths})
    return data


def _unpack(data: bytes, path: Path) -> dict[bytes, ReferenceEntry]:
    try:
        shard = load_shard(data)
        columns = zip(shard["keys"], shard["logps"].tolist(), shard["lengths"].tolist(), strict=True)
        entries = {key.tobytes(): ReferenceEntry(*logps, *lengths) for key, logps, lengths in columns}
    except (SafetensorError, KeyError, ValueError) as error:
        # The hash was right, so this is another program's file: leave it, use nothing of it.
        logger.warning("reference shard %s is not one of ours (%s); ignored", path, error)
        return {}
    # Whatever wrote a NaN, it is computed again.
    return {key: entry for key, entry in entries.items() if entry.is_finite}


def compute_entries(
    pairs: PairBatch,
    plan: Sequence[Sequence[int]],
    score: Callable[[PairBatch], Sequence[ReferenceEntry]],
    store: ReferenceStore,
    keys: Sequence[bytes],
    *,
    progress: Callable[[int], object],
    flush_seconds: float = 20.0,
) -> None:
    """Score pairs micro-batch by micro-batch into the store; an interrupted pass keeps what it has.

    Args:
        pairs: The pairs to score.
        plan: Micro-batches as indices into ``pairs``.
        score: Scores one micro-batch.
        store: Where entries go.
        keys: The pairs' keys.
        progress: Told the number of pairs after each micro-batch.
        flush_seconds: How much work a kill may cost.

    Raises:
        CheckpointError: If the store cannot be written.
        NonFiniteError: If the reference gives a pair NaN or infinity; its row is named, the others are stored.
        Interrupted: If a signal asked to stop; what was scored is stored.
    """
    saved = time.monotonic()
    bad: list[int] = []
    try:
        for microbatch in plan:
            with deferred():
                entries = score(pairs.select(microbatch))
                scored = list(zip(microbatch, entries, strict=True))
                store.add((keys[i], entry) for i, entry in scored if entry.is_finite)
            bad += [int(pairs.rows[i]) for i, entry in scored if not entry.is_finite]
            progress(len(microbatch))
            raise_if_requested()
            if time.monotonic() - saved > flush_seconds:
                with deferred():
                    store.flush()
                saved = time.monotonic()
    finally:
        with deferred():
            store.flush()
    if bad:
        raise NonFiniteError(
            f"the reference gives {len(bad)} of {len(pairs)} pairs a log-probability that is NaN or infinite, rows "
            f"{bad[:16]}: leave those rows out, or check the reference's weights and dtype"
        )
