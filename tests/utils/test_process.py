"""Freed memory is kept for the next micro-batch, and given back once it has splintered."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.methods import DPO, DPOMethodConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process import FreedMemory
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def watched(sizes: Iterable[int | None], *, window: int = 2) -> tuple[FreedMemory, list[str]]:
    """Return a watch over made-up sizes, and the list that grows whenever it gives memory back."""
    left, given_back = iter(sizes), []
    memory = FreedMemory(resident=lambda: next(left), give_back=lambda: given_back.append("freed"))
    memory.window = window
    return memory, given_back


def test_growth_within_the_first_micro_batches_is_what_they_need() -> None:
    memory, given_back = watched([100, 150, 154, 154])
    assert not any(memory.check() for _ in range(4))
    assert given_back == []


def test_growth_beyond_them_gives_memory_back_once_and_measures_anew() -> None:
    memory, given_back = watched([100, 100, 104, 120, 121, 122, 130])
    assert [memory.check() for _ in range(7)] == [False, False, True, False, False, False, True]
    assert memory.times == len(given_back) == 2


def test_short_micro_batches_after_it_do_not_make_longer_ones_a_reason() -> None:
    memory, given_back = watched([100, 100, 110, 60, 60, 100, 102])
    assert [memory.check() for _ in range(7)].count(True) == 1
    assert len(given_back) == 1


def test_where_nobody_can_tell_the_size_nothing_is_given_back() -> None:
    memory, given_back = watched([None] * 5)
    assert not any(memory.check() for _ in range(5))
    assert given_back == []


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="kept blocks are a matter of the GNU C library"
)
def test_splintered_blocks_of_a_real_process_go_back_and_those_in_use_stay() -> None:
    # In a process of its own: how blocks are kept holds for all of it.
    script = """
import torch
from dynamic_dpo.utils.process import FreedMemory, prepare_process, resident_bytes
prepare_process()
memory = FreedMemory()
memory.window = 1
assert not memory.check()
blocks = [torch.ones(250_000) for _ in range(200)]
kept = blocks[::2]
del blocks
before = resident_bytes()
assert memory.check() and memory.times == 1
assert resident_bytes() < before - 80_000_000, (before, resident_bytes())
assert all(bool((block == 1).all()) for block in kept)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_trainer_looks_after_every_micro_batch(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        tiny_llama(),
        args=training_arguments(tmp_path, max_steps=2, per_device_train_batch_size=4),
        train_dataset=random_pairs(8),
        processing_class=word_tokenizer(),
        method=DPO(DPOMethodConfig()),
    )
    looks, passes = Counter[str](), Counter[str]()
    forward = trainer.policy.forward

    def counted(*args: Any) -> Any:
        passes["forward"] += 1
        return forward(*args)

    def resident() -> int:
        looks["looked"] += 1
        return 100

    trainer.policy.forward = counted  # type: ignore[method-assign]
    trainer.whole_step.freed_memory = FreedMemory(resident=resident, give_back=lambda: None)
    trainer.train()
    assert looks.total() == passes.total() > 0
