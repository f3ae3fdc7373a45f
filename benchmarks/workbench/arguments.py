"""The training arguments that both trainers get, so that they differ in nothing but what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.jobs import Job
from workbench.workload import Pair

SEED = 7


def shared_arguments(job: Job, folder: Path) -> dict[str, Any]:
    """Return keyword arguments for `TrainingArguments` and for its subclass `trl.DPOConfig`.

    AdamW, a constant learning rate, gradients clipped to norm 1, one epoch in the given order, a log entry each
    step, nothing saved.
    """
    return {
        "output_dir": str(folder / "run"),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": job.bf16,
        "optim": "adamw_torch_fused",
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": SEED,
    }


def check_checkpointing(model: Any, job: Job) -> None:
    """Make sure, after a training, that activations were kept or computed again as the job says.

    Raises:
        RuntimeError: If a trainer's own default won.
    """
    is_on = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if is_on != job.checkpointing:
        asked, found = ("on" if yes else "off" for yes in (job.checkpointing, is_on))
        raise RuntimeError(f"{job.trainer} was to run with checkpointing {asked}, and it is {found}")


def pair_columns(pairs: list[Pair]) -> dict[str, list[list[int]]]:
    """Return pairs as the columns that both trainers read."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    return {"prompt_ids": list(prompts), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}


def shift_margins(dataset: Any, job: Job) -> Any:
    """Return ``dataset`` with the stored reference moved, so that margins grow by ``job.margin_shifts``.

    The shifts are of whole steps, in turn: an ordinary step and a saturated one can then hold the same pairs.
    """
    shifts = job.margin_shifts
    if not shifts:
        return dataset
    moved = [
        value - shifts[row // job.pairs_per_step % len(shifts)]
        for row, value in enumerate(dataset["ref_chosen_logps"])
    ]
    return dataset.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", moved)
