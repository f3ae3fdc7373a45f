"""Trains with this package's `PreferenceTrainer`, as ``train-dpo`` does, and measures it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import DPO, DPOMethodConfig, PreferenceMethod, Risk, RiskConfig
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from workbench.arguments import check_checkpointing, pair_columns, shared_arguments, shift_margins
from workbench.jobs import Job, Result
from workbench.measure import PartClock, PeakMemory, PositionCounter, StepTimer
from workbench.models import load_model, load_tokenizer
from workbench.workload import ids_hash, load_pairs, needed_tokens

# So few that the controller moves within a benchmark of a few steps.
CONTROLLER_WARMUP = 2


class Recording(PreferenceTrainer):
    """Keeps each step's pairs, to show afterwards what it trained on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[PairBatch] = []
        super().__init__(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, PairBatch], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Remember the pairs and train on them."""
        self.seen.append(inputs["pairs"])
        return super().training_step(model, inputs, *args, **kwargs)


def run(job: Job, folder: Path) -> Result:
    """Score the reference and train.

    Args:
        job: What to do.
        folder: A folder of the worker's own.
    """
    pairs = load_pairs(job.pairs_file)
    memory, clock = PeakMemory(), PartClock()
    model, tokenizer = load_model(job.model), load_tokenizer(job.model)
    positions = PositionCounter(model)
    timer = StepTimer(positions)
    start = time.perf_counter()
    trainer = Recording(
        model,
        args=TrainingArguments(
            **shared_arguments(job, folder),
            per_device_train_batch_size=job.pairs_per_step,
            gradient_accumulation_steps=1,
            activation_checkpointing=job.checkpointing,
        ),
        train_dataset=Dataset.from_dict(pair_columns(pairs)),
        processing_class=tokenizer,
        callbacks=[timer],
        method=_method(job),
        engine=EngineConfig(reference_dir=job.reference_dir or str(folder / "reference"), **job.engine),
        margin_log=MarginLogConfig() if job.margin_log else None,
    )
    build_seconds = time.perf_counter() - start
    _time_parts(trainer, clock)
    memory.take()
    positions.take()

    start = time.perf_counter()
    trainer.ensure_reference()
    reference_seconds = time.perf_counter() - start
    reference_positions = positions.take()
    memory.take()

    trained = 0
    if job.margin_shifts:
        trainer.train_dataset = shift_margins(trainer.train_dataset, job)
        # Margins are not zero before the first step, on purpose.
        trainer.policy.starts_as_reference = False
    if job.train:
        trainer.train()
        trained = memory.take()
        check_checkpointing(model, job)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    seen = [
        pair
        for batch in trainer.seen
        for pair in zip(batch.prompts, batch.chosen, batch.rejected, strict=True)
    ]
    return Result(
        num_pairs=len(pairs),
        needed_tokens=needed_tokens(pairs),
        ids_sha256=ids_hash(seen),
        computed_positions=positions.take(),
        step_seconds=timer.step_seconds,
        losses=[entry["loss"] for entry in logs],
        betas=[entry["beta"] for entry in logs],
        build_seconds=build_seconds,
        reference_seconds=reference_seconds,
        reference_positions=reference_positions,
        peak_bytes=memory.highest,
        peak_training_bytes=trained,
        part_seconds=clock.seconds,
        padding_free=trainer.policy.scorer.packed,
    )


def _method(job: Job) -> PreferenceMethod:
    if job.method == "risk":
        settings = RiskConfig(beta_0=job.beta, warmup_steps=CONTROLLER_WARMUP)
        return Risk(settings, pairs_per_update=job.pairs_per_step)
    return DPO(DPOMethodConfig(beta=job.beta))


def _time_parts(trainer: PreferenceTrainer, clock: PartClock) -> None:
    clock.wrap("controller", trainer.method, "control")
    clock.wrap("controller", trainer.method, "observe")
    clock.wrap("log entry", trainer, "log")
    for log in trainer.margin_logs:
        clock.wrap("margin log", log, "write")
