"""Trains with TRL's `DPOTrainer` on the same token ids and measures it, with its reference precomputed.

TRL's way of taking text is stepped over, nothing else of it is touched: what it computes and how is its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from trl import DPOConfig, DPOTrainer

from workbench.arguments import check_checkpointing, pair_columns, shared_arguments, shift_margins
from workbench.jobs import Job, Result
from workbench.measure import PeakMemory, PositionCounter, StepTimer
from workbench.models import load_model, load_tokenizer
from workbench.workload import Pair, ids_hash, load_pairs, needed_tokens


class Recording(DPOTrainer):  # type: ignore[misc]
    """Takes token ids as they are, times its reference pass, and keeps what it trained on."""

    def __init__(self, *args: Any, counter: PositionCounter, memory: PeakMemory, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.counter, self.memory = counter, memory
        self.reference_seconds, self.reference_positions = 0.0, 0
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Any:
        self.memory.take()
        self.counter.take()
        start = time.perf_counter()
        scored = super()._precompute_ref_logps(*args)
        self.reference_seconds += time.perf_counter() - start
        self.reference_positions += self.counter.take()
        self.memory.take()
        return scored

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Remember the batch and train on it."""
        self.seen.append(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss


def run(job: Job, folder: Path) -> Result:
    """Score the reference and train.

    Args:
        job: What to do. With ``reference_dir`` the ids lie in a data set on disk there, and TRL's own cache of
            reference log-probabilities works from one run to the next.
        folder: A folder of the worker's own.
    """
    torch.set_flush_denormal(job.flush_denormal)
    pairs = load_pairs(job.pairs_file)
    memory = PeakMemory()
    model, tokenizer = load_model(job.model, attention=job.attention), load_tokenizer(job.model)
    positions = PositionCounter(model)
    timer = StepTimer(positions)
    start = time.perf_counter()
    trainer = Recording(
        model,
        args=DPOConfig(
            **shared_arguments(job, folder),
            per_device_train_batch_size=job.device_batch,
            gradient_accumulation_steps=job.pairs_per_step // job.device_batch,
            activation_checkpointing=job.checkpointing,
            use_liger_kernel=job.liger,
            padding_free=job.padding_free,
            precompute_ref_log_probs=True,
            beta=job.beta,
            max_length=job.max_length,
        ),
        train_dataset=_dataset(job, pairs),
        processing_class=tokenizer,
        callbacks=[timer],
        counter=positions,
        memory=memory,
    )
    build_seconds = time.perf_counter() - start - trainer.reference_seconds
    trainer.train_dataset = shift_margins(trainer.train_dataset, job)
    trained = 0
    if job.train:
        trainer.train()
        trained = memory.take()
        check_checkpointing(model, job)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Result(
        num_pairs=len(pairs),
        needed_tokens=needed_tokens(pairs),
        ids_sha256=ids_hash(pair for inputs in trainer.seen for pair in _pairs_of(inputs)),
        computed_positions=positions.take(),
        step_seconds=timer.step_seconds,
        losses=[entry["loss"] for entry in logs],
        betas=[job.beta] * len(logs),
        build_seconds=build_seconds,
        reference_seconds=trainer.reference_seconds,
        reference_positions=trainer.reference_positions,
        peak_bytes=memory.highest,
        peak_training_bytes=trained,
        # Asked for and not to be had, it is switched off with a warning.
        padding_free=bool(getattr(trainer, "padding_free", False)),
    )


def _dataset(job: Job, pairs: list[Pair]) -> Dataset:
    if job.reference_dir is None:
        # In memory: the cache of reference log-probabilities ends with the process.
        return Dataset.from_dict(pair_columns(pairs))
    folder = Path(job.reference_dir, "pairs")
    if not folder.exists():
        Dataset.from_dict(pair_columns(pairs)).save_to_disk(folder)
    return load_from_disk(folder)


def _pairs_of(inputs: dict[str, Any]) -> list[Pair]:
    """Read the token ids of a batch back: all chosen rows, then all rejected ones."""
    rows = []
    columns = (inputs[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask"))
    for ids, attended, completed in zip(*columns, strict=True):
        kept = [(token, part) for token, seen, part in zip(ids, attended, completed, strict=True) if seen]
        rows.append(([t for t, part in kept if not part], [t for t, part in kept if part]))
    half = len(rows) // 2
    return [
        Pair(chosen[0], chosen[1], rejected[1])
        for chosen, rejected in zip(rows[:half], rows[half:], strict=True)
    ]
