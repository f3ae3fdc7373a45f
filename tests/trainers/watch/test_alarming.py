"""Sick runs raise their alarm within a tenth of the run, healthy ones raise none, and alarms change no number."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.errors import RunStopped
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.trainers.watch.alarming import RunAlarms
from sick_runs import SAMPLES, STEPS, make

SICK: dict[str, tuple[dict[str, Any], set[str]]] = {
    # What differs from the healthy run, and which alarms it must raise.
    "learning rate x 50": ({"rate": 2.5e-2}, {"chosen_fall"}),
    "displaced chosen": ({"kind": "displaced", "rate": 6e-3}, {"displacement"}),
    "rejected = noise": ({"kind": "noise", "rate": 2e-3}, {"saturation"}),
    "saturated": ({"epochs": 100, "beta": 1.0, "rate": 2e-3}, {"saturation"}),
    "shuffled labels": ({"kind": "shuffled", "epochs": 30, "rate": 1e-3}, {"accuracy_gap"}),
    "both answers the same": ({"kind": "same"}, {"zero_margins"}),
    "damaged weights": ({"damaged_at": 15}, {"gradient_jump", "loss_rise"}),
    "a template that never stops": (
        {"kind": "endless", "rate": 4e-3, "stops": True, "sampling": SAMPLES},
        {"missing_stops", "sample_length"},
    ),
}


@pytest.mark.parametrize("fault", SICK)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sick_run_raises_its_alarm_within_a_tenth_of_it(
    tmp_path: Path, fault: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings, expected = SICK[fault]
    trainer = make(tmp_path, seed=seed, steps=STEPS // 10, **settings)
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        trainer.train()
    raised = {alarm.name: alarm for alarm in trainer.alarms.raised}
    assert expected <= raised.keys()
    kept = [json.loads(line) for line in (tmp_path / "raised_alarms.jsonl").read_text().splitlines()]
    assert [alarm["name"] for alarm in kept] == list(raised)
    for name in expected:
        alarm = raised[name]
        assert 0 < alarm.step <= STEPS // 10
        assert alarm.value > alarm.limit
        said = [line for line in caplog.messages if alarm.sentence in line]
        assert said == [f"alarm at step {alarm.step}: {alarm.sentence}"]
        assert f"(alarms.{name} is {alarm.limit:g})" in alarm.sentence


@pytest.mark.slow
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_none(tmp_path: Path, seed: int, stops: bool) -> None:
    # Random weights stop by chance, and say nothing by it. At their rate some of the models that were taught to stop
    # unlearn it in truth: in the end 3 of seed 7's 8 samples stop.
    taught: dict[str, Any] = {"stops": True, "rate": 2e-4, "sampling": SAMPLES} if stops else {}
    trainer = make(tmp_path, seed=seed, **taught)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert trainer.alarms.raised == []
    assert not (tmp_path / "raised_alarms.jsonl").exists()
    last = [entry for entry in trainer.state.log_history if "eval_rewards/accuracies" in entry][-1]
    assert last["eval_rewards/accuracies"] > 0.75  # It has learned something.
    num_times = len([entry for entry in trainer.state.log_history if "samples/length" in entry])
    assert num_times == (STEPS // 10 + 1 if stops else 0)


def test_stop_saves_ends_and_lets_the_resumed_run_go_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"kind": "same", "steps": 16, "alarms": AlarmConfig(action="stop")}
    with pytest.raises(RunStopped, match=r"alarm at step 8: .* have a margin of exactly 0"):
        make(tmp_path, **settings).train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert 8 <= int(checkpoint.name.rsplit("-", 1)[1]) < 16
    again = make(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 16
    assert [(alarm.name, alarm.step) for alarm in again.alarms.raised] == [("zero_margins", 8)]


def test_thresholds_that_are_off_raise_nothing(tmp_path: Path) -> None:
    trainer = make(tmp_path, kind="same", steps=10, alarms=AlarmConfig(zero_margins=None))
    trainer.train()
    assert trainer.alarms.raised == []


def test_a_new_run_in_the_same_trainer_begins_without_alarms(tmp_path: Path) -> None:
    trainer = make(tmp_path, kind="same", steps=8)
    trainer.train()
    assert trainer.alarms.raised
    trainer.state.log_history = []
    trainer.alarms.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert trainer.alarms.raised == []
    assert (tmp_path / "raised_alarms.jsonl").read_text() == ""


def test_alarms_change_no_number_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(folder: Path) -> tuple[list[float], torch.Tensor]:
        trainer = make(folder, rate=2.5e-2, steps=20)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.model.lm_head.weight

    watched = numbers(tmp_path / "watched")
    monkeypatch.setattr(RunAlarms, "on_log", lambda *args, **kwargs: None)
    alone = numbers(tmp_path / "alone")
    assert watched[0] == alone[0]
    assert torch.equal(watched[1], alone[1])
