"""Alarms are functions of the log alone: each at its threshold, once, and whatever else stands in the log."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.alarms import AlarmConfig, AlarmWatch, alarms_of

HEALTHY: dict[str, Any] = {
    "loss": 0.65,
    "grad_norm": 2.0,
    "beta": 0.1,
    "rewards/accuracies": 0.6,
    "logratios/chosen": 0.1,
    "logratios/rejected": -0.4,
    "margins/p10": -1.0,
    "margins/zeros": 0.0,
}


def history(*last: dict[str, Any], before: int = 4) -> list[dict[str, Any]]:
    entries = [HEALTHY] * before + [{**HEALTHY, **one} if "loss" not in one else one for one in last]
    return [{**entry, "step": 10 * number} for number, entry in enumerate(entries, start=1)]


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [
        ("chosen_fall", {"logratios/chosen": -1.0}, {"logratios/chosen": -1.01}),
        (
            "displacement",
            {"logratios/chosen": -0.5, "logratios/rejected": -0.9},
            {"logratios/chosen": -0.51, "logratios/rejected": -0.9},
        ),
        (
            "displacement",
            {"logratios/chosen": -0.6, "logratios/rejected": -1.21},
            {"logratios/chosen": -0.6, "logratios/rejected": -1.19},
        ),
        ("saturation", {"margins/p10": 29.9}, {"margins/p10": 30.1}),
        ("gradient_jump", {"grad_norm": 20.0}, {"grad_norm": 20.1}),
        ("zero_margins", {"margins/zeros": 0.25}, {"margins/zeros": 0.26}),
        ("loss_rise", {**HEALTHY, "loss": 0.97}, {**HEALTHY, "loss": 0.98}),
    ],
)
def test_each_number_is_held_against_its_threshold(
    name: str, below: dict[str, Any], above: dict[str, Any]
) -> None:
    assert name not in [alarm.name for alarm in alarms_of(history(below))]
    (alarm,) = [alarm for alarm in alarms_of(history(above, above)) if alarm.name == name]
    assert (alarm.step, alarm.limit) == (50, getattr(AlarmConfig(), name))
    assert alarm.sentence.endswith(f"(alarms.{name} is {alarm.limit:g})")
    assert name not in [one.name for one in alarms_of(history(above), AlarmConfig(**{name: None}))]


def sampled(
    length: float = 20.0, stopped: float = 0.9, repetition: float = 0.1, **more: Any
) -> dict[str, Any]:
    return {"samples/length": length, "samples/stopped": stopped, "samples/repetition": repetition, **more}


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [
        ("sample_length", {"length": 40.0}, {"length": 40.1}),
        ("repetition", {"repetition": 0.29}, {"repetition": 0.31}),
        ("missing_stops", {"stopped": 0.41}, {"stopped": 0.39}),
    ],
)
def test_samples_are_held_against_the_first_ones(
    name: str, below: dict[str, float], above: dict[str, float]
) -> None:
    # The last samples, not the ones before: each time is measured from the first.
    start = [sampled(step=0), HEALTHY | {"step": 5}, sampled(step=10, **below)]
    assert alarms_of(start) == []
    (alarm,) = alarms_of([*start, sampled(step=20, **above), sampled(step=30, **above)])
    assert (alarm.name, alarm.step, alarm.limit) == (name, 20, getattr(AlarmConfig(), name))
    assert alarm.sentence.endswith(f"(alarms.{name} is {alarm.limit:g})")
    assert alarms_of([*start, sampled(**above)], AlarmConfig(**{name: None})) == []  # type: ignore[arg-type]


def test_samples_of_no_length_are_no_measure() -> None:
    assert alarms_of([sampled(length=0.0), sampled(length=50.0)]) == []


def evaluated(training: list[float], held_out: list[float]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for number, (accuracy, of_held_out) in enumerate(zip(training, held_out, strict=True), start=1):
        entries += [
            {"step": number, "loss": 0.6, "rewards/accuracies": accuracy},
            {"step": number, "eval_loss": 0.6, "eval_rewards/accuracies": of_held_out},
        ]
    return entries


def test_a_gap_of_accuracies_counts_where_that_of_training_has_risen() -> None:
    assert [(a.name, a.step) for a in alarms_of(evaluated([0.5, 0.7, 0.95], [0.5, 0.6, 0.5]))] == [
        ("accuracy_gap", 3)
    ]
    assert alarms_of(evaluated([0.9, 0.9, 0.9], [0.5, 0.5, 0.5])) == []
    assert alarms_of(evaluated([0.5, 0.7, 0.9], [0.5, 0.7, 0.8])) == []


def test_a_cut_log_raises_what_the_whole_one_raises() -> None:
    whole = history({"grad_norm": 50.0}, {"logratios/chosen": -2.0}, {"margins/p10": 99.0})
    watch = AlarmWatch()
    for entry in whole[:5]:
        watch.see(entry)
    first = list(watch.raised)
    for entry in whole[5:]:
        watch.see(entry)
    assert watch.raised == alarms_of(whole)
    assert first == alarms_of(whole[:5])
    names = ["gradient_jump", "chosen_fall", "displacement", "saturation"]
    assert [alarm.name for alarm in watch.raised] == names


def test_early_entries_are_no_measure() -> None:
    assert alarms_of(history({"grad_norm": 900.0, "margins/zeros": 1.0}, before=2)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1e9", None, True, [3]])
def test_what_is_no_number_raises_nothing(value: object) -> None:
    strange = {name: value for name in HEALTHY if name != "loss"}
    assert alarms_of(history({**strange, "loss": value}, {"eval_rewards/accuracies": value})) == []
    assert alarms_of([{}, {"step": 3}, {"train_runtime": 3.0}]) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chosen_fall": 0.0}, "chosen_fall"),
        ({"action": "shout"}, "action"),
        ({"accuracy_gap": 1.5}, "accuracy_gap"),
    ],
)
def test_thresholds_have_their_ranges(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AlarmConfig(**settings)
