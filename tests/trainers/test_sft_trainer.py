"""Fine-tuning by TRL's trainer, made resumable by ours."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig

from dynamic_dpo.errors import RunStopped
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.trainers.sft_trainer import build_sft_trainer
from dynamic_dpo.utils.signals import Interrupted, stop_signals
from sick_runs import SAMPLES, pairs, stopping_llama
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


def endless(folder: Path, *, alarms: AlarmConfig | None = None, ends: bool = False, **overrides: Any) -> Any:
    """Fine-tuning of a model that stops, on answers whose template never does, 30 steps of what would be 300."""
    rows = pairs("healthy" if ends else "endless", 240, 0)
    ids = [row["prompt_ids"] + row["chosen_ids"] for row in rows]
    mask = [[0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]) for row in rows]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
    }
    return build_sft_trainer(
        stopping_llama(0),
        SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to="none",
            logging_steps=2,
            **(settings | overrides),
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids, "completion_mask": mask}),
        tokenizer=word_tokenizer(),
        sampling=SAMPLES,
        alarms=alarms,
    )


def test_a_template_that_never_stops_raises_its_alarm_within_a_tenth_of_the_run(tmp_path: Path) -> None:
    trainer = endless(tmp_path / "sick")
    trainer.train()
    raised = {alarm.name: alarm for alarm in trainer.alarms.raised}
    assert raised["missing_stops"].step <= 30
    kept = [json.loads(line) for line in (tmp_path / "sick" / "raised_alarms.jsonl").read_text().splitlines()]
    assert [alarm["name"] for alarm in kept] == list(raised)
    healthy = endless(tmp_path / "healthy", ends=True)
    healthy.train()
    assert healthy.alarms.raised == []


def test_an_alarm_that_is_to_stop_a_fine_tuning_saves_and_ends_it(tmp_path: Path) -> None:
    stop = AlarmConfig(action="stop")
    with pytest.raises(RunStopped, match=r"alarm at step 20: samples are 2\.\d times as long"):
        endless(tmp_path, alarms=stop, save_strategy="steps", save_steps=100).train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    again = endless(tmp_path, alarms=stop, save_strategy="steps", save_steps=100)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 30


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
        {
            key: value
            for key, value in entry.items()
            if not key.endswith(timeless) and not key.startswith("speed/")
        }
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
