"""The section of a run that keeps its best weights: from a file to settings, and what is refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_dpo.config import apply_overrides, get_training_config
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.keep_best import KeepBest


def read(training: dict[str, Any], data: dict[str, Any] | None = None) -> KeepBest | None:
    settings = {"policy_name": "m", "dpo_training": training, "dataset": data or {}}
    return get_training_config(settings).keep_best()


def test_a_file_gives_the_settings_of_the_component() -> None:
    assert read({}) is None
    assert read({"keep_best": None}) is None
    assert read({"keep_best": {}}) == KeepBest()
    given = {"metric": "eval_accuracy", "patience": 3, "min_delta": 0.01}
    assert read({"keep_best": given}) == KeepBest("eval_accuracy", 3, 0.01)
    assert read({"keep_best": {}, "eval_strategy": "epoch"}) == KeepBest()
    settings = apply_overrides({"policy_name": "m"}, ["dpo_training.keep_best.patience=4"])
    assert get_training_config(settings).keep_best() == KeepBest(patience=4)


@pytest.mark.parametrize(
    ("training", "data", "message"),
    [
        ({"keep_best": {"patience": 0}}, {}, "dpo_training.keep_best.patience must be at least 1, got 0"),
        ({"keep_best": {"metrc": "loss"}}, {}, "did you mean dpo_training.keep_best.metric?"),
        ({"keep_best": True}, {}, "dpo_training.keep_best must be a section of keys and values"),
        (
            {"keep_best": {}},
            {"val_ratio": 0.0},
            "keep_best chooses by held-out pairs, and dataset.val_ratio is 0: set it above 0",
        ),
        (
            {"keep_best": {}, "eval_steps": None},
            {},
            "chooses by evaluations, and dpo_training.eval_steps is null",
        ),
        ({"load_best_model_at_end": True}, {}, "load_best_model_at_end is decided by dpo_training.keep_best"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    training: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(training, data)
    assert message in str(refused.value)
