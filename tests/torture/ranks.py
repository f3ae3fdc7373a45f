"""Two ranks on this machine over gloo: long runs, sharded steps, a rank that dies, a signal to one of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torture.processes import REFUSED, Forked
from torture.tiny_run import build, digest, tiniest_llama, warm_up

RANKS = 2


def fork_ranks(function: Callable[[int], object], folder: Path) -> list[Forked]:
    """Run ``function(rank)`` on two ranks, as a launcher would start them."""
    warm_up()
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Forked(partial(_as_rank, function, rank, port), folder / f"output-{rank}") for rank in range(RANKS)
    ]


def _as_rank(function: Callable[[int], object], rank: int, port: int) -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    function(rank)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_rank(folder: Path, rank: int, **overrides: Any) -> None:
    """Begin or go on with the tiny run on this rank; leave the digest of its end."""
    trainer = build(folder, per_device_train_batch_size=1, **overrides)
    trainer.train(resume_from_checkpoint=trainer.find_checkpoint())
    (folder / f"end-{rank}.json").write_text(json.dumps(digest(trainer)))


def long_run(steps: int) -> tuple[dict[str, str], dict[str, str]]:
    """Train so many DDP steps on two ranks; return what each rank ended with."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings: dict[str, Any] = {"max_steps": steps, "save_steps": steps, "eval_strategy": "no"}
        children = fork_ranks(partial(train_rank, folder, **settings), folder)
        for child in children:
            assert child.wait(900) == 0, child.output.read_text()[-3000:]
        first, second = (json.loads((folder / f"end-{rank}.json").read_text()) for rank in range(RANKS))
        return first, second


def kill_one(after: float, *, number: int = signal.SIGKILL) -> tuple[int, float, str]:
    """Kill rank 1 of a long run; return rank 0's exit code, the seconds it took to end, and what it said."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        children = fork_ranks(partial(train_rank, folder, max_steps=2000, save_steps=2000), folder)
        code = children[1].signal_after(after, number)
        assert code == -number, children[1].output.read_text()[-3000:]
        start = time.monotonic()
        code = children[0].wait(120)
        return code, time.monotonic() - start, (folder / "output-0").read_text()[-1500:]


def stop_one(after: float) -> list[str]:
    """Send SIGTERM to rank 1 alone: both end, and resumed they end as two ranks nobody disturbed."""
    with tempfile.TemporaryDirectory() as scratch:
        whole, folder = Path(scratch) / "a", Path(scratch) / "b"
        for child in fork_ranks(partial(train_rank, whole), whole):
            assert child.wait() == 0, child.output.read_text()[-3000:]
        children = fork_ranks(partial(train_rank, folder), folder)
        codes = [children[1].signal_after(after, signal.SIGTERM), children[0].wait()]
        # A rank that is stopped before the first step does not wait for the others, who then say so.
        assert codes in ([143, 143], [143, REFUSED], [0, 0]), [
            child.output.read_text()[-2000:] for child in children
        ]
        for child in fork_ranks(partial(train_rank, folder), folder):
            assert child.wait() == 0, child.output.read_text()[-3000:]
        ends = [
            [json.loads((where / f"end-{rank}.json").read_text()) for rank in (0, 1)]
            for where in (whole, folder)
        ]
        return [
            f"rank {rank}: {part}"
            for rank in (0, 1)
            for part in ends[0][rank]
            if ends[0][rank][part] != ends[1][rank][part]
        ]


def _sharded(folder: Path, steps: int, rank: int) -> None:
    """Make optimizer steps with the trainer's own step code around a model sharded by ``fully_shard``."""
    from accelerate import Accelerator
    from torch.distributed.fsdp import fully_shard

    from dynamic_dpo.engine.config import EngineConfig
    from dynamic_dpo.methods import Risk, RiskConfig
    from dynamic_dpo.trainers.guards import MarginGuard
    from dynamic_dpo.trainers.policy import PolicyAndReference
    from dynamic_dpo.trainers.ranks import check_ranks_agree
    from dynamic_dpo.trainers.reference_pass import collate_pairs
    from dynamic_dpo.trainers.whole_step import WholeStep
    from tiny import random_pairs, word_tokenizer

    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    accelerator = Accelerator(cpu=True)
    policy = PolicyAndReference(
        tiniest_llama(),
        None,
        word_tokenizer(),
        None,
        disable_dropout=True,
        gradient_checkpointing=False,
        fingerprint="tiny",
    )
    engine = EngineConfig(reference_dir=str(folder / f"reference-{rank}"), self_check=False)
    policy.prepare(accelerator, is_sharded=False, keep_reference=False)
    policy.build_scorer(engine)
    data = policy.open_reference(accelerator, show_progress=False).attach(
        random_pairs(24, longest=6), name="train"
    )
    for layer in policy.model.model.layers:
        fully_shard(layer)
    fully_shard(policy.model)
    method = Risk(
        RiskConfig(mode="exact", scope="step", alpha=0.3, delta=0.25, window_multiple=2), pairs_per_update=8
    )
    step = WholeStep(
        method=method,
        policy=policy,
        accelerator=accelerator,
        guard=MarginGuard(max_nonfinite=0),
        device_batch=4,
        is_sharded=True,
    )
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    betas = []
    for number in range(steps):
        rows = [(8 * number + 4 * rank + i) % len(data) for i in range(4)]
        pairs = collate_pairs(data.select(rows).to_list())["pairs"]
        step.run(policy.model, pairs, step=number, on_update=lambda *update: None)
        optimizer.step()
        optimizer.zero_grad()
        check_ranks_agree(accelerator, {"controller state": method.state_dict()})
        betas.append(method.beta)
    weights = {name: value.full_tensor().tolist() for name, value in policy.model.state_dict().items()}
    text = json.dumps([weights, method.state_dict()])
    end = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "betas": betas, "updates": step.num_updates}
    (folder / f"end-{rank}.json").write_text(json.dumps(end))


def sharded_steps(steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make so many sharded steps on two ranks; return what each rank ended with."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for child in fork_ranks(partial(_sharded, folder, steps), folder):
            assert child.wait(600) == 0, child.output.read_text()[-3000:]
        first, second = (json.loads((folder / f"end-{rank}.json").read_text()) for rank in range(RANKS))
        return first, second


__all__ = ["REFUSED", "fork_ranks", "kill_one", "long_run", "sharded_steps", "stop_one", "train_rank"]
