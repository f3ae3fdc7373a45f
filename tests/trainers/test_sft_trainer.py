"""Fine-tuning by TRL's trainer, made resumable by ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig

from dynamic_dpo.trainers.sft_trainer import build_sft_trainer
from dynamic_dpo.utils.signals import Interrupted, stop_signals
from tiny import tiny_llama, word_tokenizer


def build(folder: Path, **overrides: Any) -> Any:
    """Fine-tuning on 8 rows: 2 epochs of 4 steps, a checkpoint every 2, a log entry a step."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        **overrides,
    }
    rows = {
        "prompt": [f"w{i} w{i + 1}" for i in range(8)],
        "completion": [f" w{i + 3} w9 w{i}" for i in range(8)],
    }
    return build_sft_trainer(
        settings.pop("model", None) or tiny_llama(),
        SFTConfig(output_dir=str(folder), use_cpu=True, report_to="none", **({"bf16": False} | settings)),
        train_dataset=Dataset.from_dict(rows),
        eval_dataset=Dataset.from_dict(rows).select(range(3)),
        tokenizer=word_tokenizer(),
    )


class SignalAfter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def entries(trainer: Any) -> list[dict[str, float]]:
    """The whole log but for what a clock says."""
    timeless = ("runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timeless)}
        for entry in trainer.state.log_history
    ]


def test_a_signal_ends_fine_tuning_in_a_checkpoint_and_the_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path,
) -> None:
    whole = build(tmp_path / "whole")
    whole.train()
    first = build(tmp_path / "parts")
    first.add_callback(SignalAfter(3))
    with pytest.raises(Interrupted), stop_signals():
        first.train()
    assert first.find_checkpoint() == str(tmp_path / "parts" / "checkpoint-3")
    resumed = build(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 8
    assert entries(resumed) == entries(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_with_bfloat16_weights_learns(tmp_path: Path, bf16: bool) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    before = {name: weight.float() for name, weight in model.named_parameters()}
    trainer = build(tmp_path, model=model, bf16=bf16, learning_rate=5e-7, save_strategy="no")
    trainer.train()
    moved = sum(int((weight != before[name]).sum()) for name, weight in trainer.model.named_parameters())
    # All but the embeddings of words that no row has.
    assert moved > 0.85 * sum(weight.numel() for weight in before.values())


@pytest.mark.parametrize("stops", [[1], [2, 5], [3, 4, 7]])
def test_the_log_of_a_fine_tuning_does_not_depend_on_where_it_was_stopped(
    tmp_path: Path, stops: list[int]
) -> None:
    settings = {
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 100,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
    }
    whole = build(tmp_path / "whole", **settings)
    output = whole.train()
    for step in stops:
        part = build(tmp_path / "parts", **settings)
        part.add_callback(SignalAfter(step))
        with pytest.raises(Interrupted), stop_signals():
            part.train(resume_from_checkpoint=True if step != stops[0] else None)
    resumed = build(tmp_path / "parts", **settings)
    again = resumed.train(resume_from_checkpoint=True)
    assert entries(resumed) == entries(whole)
    assert again.training_loss == output.training_loss == entries(whole)[-1]["train_loss"]


def test_a_signal_that_ended_one_training_does_not_end_the_next(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    stop = SignalAfter(3)
    trainer.add_callback(stop)
    with pytest.raises(Interrupted), stop_signals():
        trainer.train()
    trainer.remove_callback(stop)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8
    assert trainer.stopping.signal is None


def test_a_finished_fine_tuning_that_is_resumed_makes_no_step_more(tmp_path: Path) -> None:
    build(tmp_path, max_steps=3, save_steps=1).train()
    again = build(tmp_path, max_steps=3, save_steps=1)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
