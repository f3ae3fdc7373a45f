"""The same ten steps for TRL's trainer and ours: arguments, rows as text, a policy, and what its losses were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig

from tiny import tiny_llama

BETA = 0.3
STEPS = 10
BATCH = 4


def arguments(folder: Path, **settings: Any) -> DPOConfig:
    settings = {"per_device_train_batch_size": BATCH, "learning_rate": 2e-3, "beta": BETA, **settings}
    return DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_steps=STEPS,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
        **settings,
    )


def policy() -> Any:
    model = tiny_llama(seed=1)
    # Larger logits, so that margins of some nats arise.
    model.lm_head.weight.data *= 2
    return model


def words(ids: list[int]) -> str:
    return " ".join(f"w{i - 4}" for i in ids)


def text_of(rows: Dataset) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [words(ids) for ids in rows["prompt_ids"]],
            # TRL adds the end-of-sequence token by itself.
            "chosen": [" " + words(ids[:-1]) for ids in rows["chosen_ids"]],
            "rejected": [" " + words(ids[:-1]) for ids in rows["rejected_ids"]],
        }
    )


def recording(trainer: type, losses: list[float]) -> type:
    class Recording(trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    return Recording
