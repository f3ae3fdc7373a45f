"""One truth on every rank: one of them decides, what must be equal is compared, and a rank that is gone is said so.

On one rank everything here is the identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object

from dynamic_dpo.errors import DynamicDPOError, ModelError
from dynamic_dpo.utils.process_group import on_first_rank

T = TypeVar("T")

# What the libraries underneath say when another rank has ended or does not answer.
_GONE = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "timed out", "Timed out")


def on_main_process(accelerator: Any, function: Callable[[], T]) -> T:
    """Run ``function`` on the main process; every rank returns its result or raises its error.

    Only errors of ours travel; any other ends the main process and, with it, the others. Collective over ranks.
    """
    return function() if accelerator.num_processes == 1 else on_first_rank(function)


def gather_texts(accelerator: Any, text: str) -> list[str]:
    """Return every rank's text, in order of rank. Collective over ranks."""
    if accelerator.num_processes == 1:
        return [text]
    gathered: list[str] = gather_object([text])
    return gathered


def check_ranks_agree(accelerator: Any, values: Mapping[str, Any]) -> None:
    """Compare values, JSON types each, over all ranks by hash. Collective over ranks.

    Raises:
        ModelError: If they differ; it names the value and the ranks that stand apart from the first.
    """
    if accelerator.num_processes == 1:
        return
    hashes = torch.tensor([hash_of(value) for value in values.values()], device=accelerator.device)
    table = accelerator.gather(hashes[None])
    for column, name in enumerate(values):
        apart = [rank for rank, value in enumerate(table[:, column].tolist()) if value != table[0, column]]
        if apart:
            raise ModelError(
                f"{name} differs between rank 0 and ranks {apart}: what they would train is not one run. All ranks "
                "must read the same files with the same versions of the packages"
            )


def reference_hash(dataset: Any) -> str:
    """Return a hash of a data set's reference log-probabilities, in order; empty where it has none."""
    digest = hashlib.sha256()
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in dataset.column_names:
            column = dataset.select_columns([name]).with_format("numpy")[:][name]
            digest.update(np.asarray(column, np.float64).tobytes())
    return digest.hexdigest()


@contextmanager
def clear_rank_errors() -> Iterator[None]:
    """Say in one sentence that another rank has ended, instead of what the transport says of it."""
    try:
        yield
    except RuntimeError as error:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or not any(word in str(error) for word in _GONE):
            raise
        raise DynamicDPOError(
            f"another rank of this run has ended or does not answer ({str(error).splitlines()[0]}). Its own "
            "output says why; the run's checkpoints are whole, and resuming goes on from the newest"
        ) from error


def hash_of(value: Any) -> int:
    """Return 64 bits of the SHA-256 of a value of JSON types."""
    text = json.dumps(value, sort_keys=True)
    # One int64 travels through every backend.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
