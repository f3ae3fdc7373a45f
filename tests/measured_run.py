"""A sharded run of a model of some hundred MB that leaves what each rank held; for `engine/test_memory.py`.

Usage: ``measured_run.py FOLDER MODEL``. A "GPU" is the same memory as the host's here. So tensors are counted where
they are held, and stages are told by the process's anonymous memory (no file stands behind it), from before the model
is loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from dynamic_dpo.methods import DPO
from dynamic_dpo.models.sources import load_model, resolve_model
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

SECONDS_BETWEEN_LOOKS = 0.02
_libc = ctypes.CDLL("libc.so.6")


def anonymous_bytes() -> int:
    """Return the memory of this process that is in use and belongs to no file."""
    # What was freed and kept for the next allocation is not in use.
    _libc.malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class Watch:
    """Looks at the process's memory from a thread of its own."""

    def __init__(self) -> None:
        self._highest = 0
        # Without it a look that began before `take` would write the highest value of the time before back.
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            with self._lock:
                self._highest = max(self._highest, anonymous_bytes())

    def take(self) -> int:
        """Return the most since the last call."""
        with self._lock:
            highest = max(self._highest, anonymous_bytes())
            self._highest = 0
        return highest

    def close(self) -> None:
        """End the thread."""
        self._done.set()
        self._thread.join()


def held_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Return the bytes of tensors on this rank; of a sharded one, its shard's."""
    local = (getattr(tensor, "_local_tensor", tensor) for tensor in tensors if tensor is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


class Measuring(TrainerCallback):  # type: ignore[misc]
    """Counts gradients before each optimizer step, and the optimizer's averages after it."""

    def __init__(self) -> None:
        self.gradients = self.optimizer = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the gradients of a whole step."""
        self.gradients = held_bytes(parameter.grad for parameter in kwargs["model"].parameters())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the averages: the optimizer's step counters have no dimension."""
        states = kwargs["optimizer"].state.values()
        self.optimizer = held_bytes(value for held in states for value in held.values() if value.dim())


def warm_up(folder: Path) -> None:
    """Load and run something small: libraries that come with first use are no part of a model.

    Each rank for itself, so before there is a process group: in one the first rank alone writes and reads weights.
    """
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    model = load_model(resolve_model(str(folder)))
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


def main(folder: Path, model: str) -> None:
    before, watch, measuring = anonymous_bytes(), Watch(), Measuring()
    taken: list[int] = []
    load = AutoModelForCausalLM.from_pretrained

    def loaded(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        taken.append(watch.take())
        return model

    AutoModelForCausalLM.from_pretrained = loaded
    trainer = PreferenceTrainer(
        model=model,
        args=training_arguments(
            folder / "run", max_steps=2, per_device_train_batch_size=2, learning_rate=1e-4
        ),
        train_dataset=random_pairs(8),
        processing_class=word_tokenizer(),
        method=DPO(),
        callbacks=[measuring],
    )
    trainer.train()
    weights = held_bytes(trainer.model.parameters())
    training = watch.take()
    at_rest = anonymous_bytes()
    trainer.save_model(str(folder / "final"))
    result = {
        "weights": weights,
        "gradients": measuring.gradients,
        "Adam": measuring.optimizer,
        "loading": taken[0] - before,
        "training": training - before,
        "saving": watch.take() - at_rest,
    }
    watch.close()
    (folder / f"result_{trainer.args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    warm_up(place / f"warm_{os.environ['RANK']}")
    with process_group():
        main(place, sys.argv[2])
    end_process(0)
