"""A monitor that stops a run: after a whole checkpoint, with its reason, and so that the run can go on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, RunStopped
from dynamic_dpo.methods import RiskConfig
from dynamic_dpo.trainers import RiskBetaDPOConfig, RiskBetaDPOTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def trainer(folder: Path, *, args: dict[str, Any] | None = None, **settings: Any) -> RiskBetaDPOTrainer:
    # Every margin lies above a budget of -1,000 nats: the alarm comes within a few updates.
    known: dict[str, Any] = {
        "warmup_steps": 2,
        "mode": "target",
        "margin_budget": -1000.0,
        "monitor_threshold": 50.0,
    }
    return RiskBetaDPOTrainer(
        tiny_llama(),
        args=training_arguments(folder, **(args or {"max_steps": 40})),
        train_dataset=random_pairs(24),
        processing_class=word_tokenizer(),
        dynamic_cfg=RiskBetaDPOConfig(**(known | settings)),
    )


def test_stop_saves_a_checkpoint_that_the_run_can_go_on_from(tmp_path: Path) -> None:
    first = trainer(tmp_path, monitor="stop")
    with pytest.raises(RunStopped, match=r"the rate of exceedance has risen .* is saved; resuming goes on"):
        first.train()
    stopped_at = first.state.global_step
    assert 2 < stopped_at < 10
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{stopped_at}"
    again = trainer(tmp_path, monitor="stop")
    with pytest.raises(RunStopped):
        again.train(resume_from_checkpoint=True)
    # It went on from there, with the evidence collected anew, to the next alarm.
    assert again.state.global_step > stopped_at
    assert again.method.summary()["alarms"] == 2


def test_report_trains_on_and_logs_what_it_counted(tmp_path: Path) -> None:
    whole = trainer(tmp_path, monitor="report", args={"max_steps": 15})
    whole.train()
    assert whole.state.global_step == 15
    alarms = [entry["risk/alarms"] for entry in whole.state.log_history if "risk/alarms" in entry]
    assert alarms[-1] >= 2
    assert alarms == sorted(alarms)


def test_the_trainers_settings_are_the_controllers_with_the_promised_ones_first() -> None:
    names = [entry.name for entry in fields(RiskBetaDPOConfig)]
    assert names[:13] == [
        "delta", "momentum", "beta_0", "alpha", "gamma", "beta_min", "beta_max", "warmup_steps",
        "log_margins", "log_dir", "jsonl_name", "save_per_rank", "jsonl_sample_size",
    ]  # fmt: skip
    assert {entry.name for entry in fields(RiskConfig)} <= set(names)
    assert RiskBetaDPOConfig().risk() == RiskConfig()
    with pytest.raises(ConfigError, match="margin_budget is needed by mode target"):
        RiskBetaDPOConfig(mode="target")


def test_alpha_scale_auto_is_resolved_by_the_trainer(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, mode="rm", scope="step", alpha_scale="auto", args={"gradient_accumulation_steps": 3}
    )
    assert made.method.config.scale == 3.0  # type: ignore[attr-defined]
