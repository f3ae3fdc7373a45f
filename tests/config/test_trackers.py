"""Whatever the installed transformers reports to is a tracker; what is missing is said with its remedy."""

from __future__ import annotations

import pytest
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from dynamic_dpo.cli.build_training import trackers
from dynamic_dpo.config import get_training_config
from dynamic_dpo.config.trackers import _ASKED_FOR, unusable_trackers
from dynamic_dpo.errors import ConfigError


@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK))
def test_each_tracker_of_transformers_is_taken_or_says_what_to_install(name: str) -> None:
    config = get_training_config({"policy_name": "m", "dpo_training": {"report": [name]}})
    assert config.dpo_training.report == [name]
    # It leaves azure_ml out of those that are available where mlflow is there too; both may be asked for.
    if name in get_available_reporting_integrations():
        assert trackers(name) == [name]
    elif unusable_trackers([name]):
        with pytest.raises(
            ConfigError, match=rf"dpo_training\.report asks for .* {name}: (pip install|it reports)"
        ):
            trackers(name)


def test_every_tracker_of_the_installed_release_is_known_with_a_remedy() -> None:
    assert {*INTEGRATION_TO_CALLBACK} <= {*_ASKED_FOR}


def test_tensorboard_is_installed_with_the_extra_of_its_tests() -> None:
    assert trackers(["tensorboard", "tensorboard", "none"]) == ["tensorboard"]


@pytest.mark.parametrize("report", ["none", None, [], ["none"]])
def test_none_and_null_report_nowhere(report: str | list[str] | None) -> None:
    get_training_config({"policy_name": "m", "dpo_training": {"report": report}})
    assert trackers(report) == []


def test_all_means_those_that_are_installed() -> None:
    assert trackers("all") == get_available_reporting_integrations()
    assert "tensorboard" in trackers(["all"])


def test_an_unknown_tracker_is_answered_with_those_there_are() -> None:
    names = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
    with pytest.raises(
        ConfigError, match=rf"dpo_training.report must be null, none, all or .*{names}, got 'tensorbord'"
    ):
        get_training_config({"policy_name": "m", "dpo_training": {"report": "tensorbord"}})
    with pytest.raises(ConfigError, match=r"sft_training\.report_to must be .* got 'wandb, mlflow'"):
        trackers("wandb, mlflow", "sft_training.report_to")
