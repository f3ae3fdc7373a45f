"""The record that every run leaves: how fast, how much, from what, and where beta ended."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.runs.files import SUMMARY
from dynamic_dpo.utils.files import write_json, write_refused
from dynamic_dpo.utils.secrets import redact_values

PACKAGES = ("dynamic-dpo", "torch", "transformers", "trl", "datasets", "accelerate", "peft")


def peak_memory_bytes() -> int:
    """Return the most memory in use so far: the GPU's where one is in use, else the process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a SHA-256 over a configuration's canonical JSON."""
    text = json.dumps(config, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_run_summary(
    folder: str | Path,
    facts: Mapping[str, Any],
    *,
    pairs_trained: int,
    training_seconds: float,
    config: Mapping[str, Any],
) -> Path:
    """Write the run's record, ``run_summary.json``.

    Args:
        folder: The run's output folder.
        facts: What the trainer knows of the run.
        pairs_trained: Pairs trained on by this process group, those before a resume left out.
        training_seconds: Seconds spent inside optimizer steps for them.
        config: The run's configuration, to be hashed.

    Returns:
        The file written.

    Raises:
        CheckpointError: If the disk refuses it.
    """
    summary = {
        **facts,
        "pairs_per_second": pairs_trained / training_seconds if training_seconds else None,
        "training_seconds": training_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "config_hash": config_hash(config),
    }
    try:
        return write_json(Path(folder) / SUMMARY, redact_values(summary))
    except OSError as error:
        advice = write_refused(error) or "look at the folder"
        raise CheckpointError(
            f"the run's record cannot be written to {folder}: {error}. Its checkpoints are as they were; {advice}, "
            "then resume"
        ) from error
