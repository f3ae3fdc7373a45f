"""Presets: defaults by name that a user's own settings replace, refused with the list where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamic_dpo.config import get_evaluation_config, load_yaml
from dynamic_dpo.config.presets import with_preset
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.presets.table import PRESETS, preset_file


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_file_of_known_keys(name: str) -> None:
    config = get_evaluation_config({"preset": name})
    assert config.preset == name
    said = load_yaml(preset_file(name))
    assert config.dataset.name == said["dataset"]["name"]


def test_every_file_of_the_folder_is_in_the_table() -> None:
    folder = preset_file("alpaca_eval_2").parent
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(PRESETS)


def test_own_settings_replace_those_of_the_preset_key_by_key() -> None:
    config = get_evaluation_config(
        {
            "preset": "alpaca_eval_2",
            "dataset": {"max_samples": 8},
            "models": {"mine": "runs/dpo"},
            "generation": None,
            "judge": {"both_orders": True},
        }
    )
    assert config.dataset.max_samples == 8
    assert str(config.dataset.name).startswith("hf://datasets/tatsu-lab/alpaca_eval/")
    assert list(config.models) == ["gpt4_1106_preview", "mine"]
    assert config.baseline == "gpt4_1106_preview"
    assert config.generation.max_new_tokens == 2048
    assert config.judge.both_orders


def test_without_a_preset_nothing_changes_and_no_settings_are_changed_in_place() -> None:
    own = {"dataset": {"name": "x"}, "models": {"a": "b"}}
    assert with_preset(own) is own
    named = {"preset": "alpaca_eval_2", "dataset": {"name": "x"}}
    assert with_preset(named)["dataset"] == {"name": "x", "max_samples": None}
    assert named == {"preset": "alpaca_eval_2", "dataset": {"name": "x"}}


def test_saved_settings_of_a_preset_read_as_they_were(tmp_path: Path) -> None:
    config = get_evaluation_config({"preset": "alpaca_eval_2", "models": {"mine": "runs/dpo"}})
    config.save(tmp_path / "config.yaml")
    assert get_evaluation_config(load_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", ["alpaca_eval_3", "", 2, ["alpaca_eval_2"]])
def test_an_unknown_preset_is_refused_with_the_list(name: object) -> None:
    with pytest.raises(ConfigError, match=r"preset must be .*alpaca_eval_2"):
        get_evaluation_config({"preset": name})
