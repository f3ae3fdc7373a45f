"""Clocks and counters of a worker: seconds per step, positions that the model computes, peaks of memory.

They watch any trainer built on the Hugging Face one from outside, the same way for all.
"""

from __future__ import annotations

import functools
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

PACKAGES = (
    "dynamic-dpo",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "liger-kernel",
    "flash-attn",
)


class PositionCounter:
    """Counts the token positions that enter a model, padding included, whatever their layout."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.count += inputs[0].numel()

    def take(self) -> int:
        """Return the count since the last call."""
        taken, self.count = self.count, 0
        return taken


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Notes when training begins and each step ends: what lies between steps counts to the later one.

    Args:
        positions: A counter that is to start with the first step, after whatever checks come before it.
    """

    def __init__(self, positions: PositionCounter) -> None:
        self.positions = positions
        self.marks: list[float] = []

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.positions.take()
        self._mark()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the end of an optimizer step."""
        self._mark()

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step."""
        return [end - start for start, end in zip(self.marks, self.marks[1:], strict=False)]


class PeakMemory:
    """The most memory in use since the last look: the GPU's where there is one, else the process's resident set."""

    def __init__(self) -> None:
        self.highest = 0

    def take(self) -> int:
        """Return the peak in bytes since the last call and start anew.

        Where the system cannot start anew (no Linux), it is the peak of the whole process.
        """
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            peak = _peak_resident()
            _forget_peak_resident()
        self.highest = max(self.highest, peak)
        return int(peak)


def _peak_resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    # Not ru_maxrss: across fork and exec it keeps the peak of the process that started this one.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _forget_peak_resident() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


class PartClock:
    """Adds up seconds spent inside functions, by the part of the trainer they stand for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, part: str, owner: Any, name: str) -> None:
        """Time every call of ``owner.name`` as ``part``."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
