"""Sections of methods: made from their dataclasses, complete, and refused where nothing would read them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from dynamic_dpo.config import get_training_config
from dynamic_dpo.config.schema import TrainingConfig
from dynamic_dpo.config.sections.methods import (
    CONTROLLERS,
    LossName,
    MethodName,
)
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import METHODS
from dynamic_dpo.utils.settings import file_defaults


def config_with(**sections: object) -> TrainingConfig:
    return get_training_config({"policy_name": "m", **sections})


def problem_of(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config_with(**sections)
    (line,) = str(caught.value).splitlines()
    return line


def test_files_can_name_every_method_and_steer_every_loss_that_can_be() -> None:
    assert list(get_args(MethodName)) == list(METHODS)
    assert set(CONTROLLERS) == {name for name, method in METHODS.items() if method.steers_beta}
    assert set(get_args(LossName)) == {name for name, method in METHODS.items() if not method.why_not_steered}


def test_every_method_with_settings_has_a_section_of_the_same_keys() -> None:
    config = config_with()
    for name, method in METHODS.items():
        own = {entry.name for entry in fields(method.Settings)} if method.Settings else set()
        assert set(config.settings_of(name)) == own, name


@pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.Settings], ids=lambda method: method.name
)
def test_a_sections_defaults_are_the_dataclass_s_but_for_a_shared_beta(method: Any) -> None:
    section = config_with().settings_of(method.name)
    own = file_defaults(method.Settings)
    for key, value in section.items():
        assert (value is None and key == "beta") or value == getattr(own, key)
    assert config_with().settings_of("simpo")["beta"] == 2.0
    assert config_with().settings_of("epsilon_dpo")["beta"] == 0.01


LOSSES = [name for name, method in METHODS.items() if not method.why_not_steered]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"method": {"name": "ipo"}, "ipo": {"betta": 1.0}},
            "unknown key ipo.betta; did you mean ipo.beta?",
        ),
        (
            {"method": {"name": "ipo"}, "ipo": {"length_normalised": 1}},
            "ipo.length_normalised must be true or false, got 1",
        ),
        (
            {"method": {"name": "robust"}, "robust": {"epsilon": 0.5}},
            "robust.epsilon must lie in [0, 0.5), got 0.5",
        ),
        (
            {"method": {"name": "beta_dpo"}, "beta_dpo": {"keep_share": 0}},
            "beta_dpo.keep_share must lie in (0, 1], got 0",
        ),
        (
            {"method": {"loss": "beta_dpo"}},
            "method.loss cannot be beta_dpo, since it finds a beta of its own for every batch: set "
            "method.name=beta_dpo to train with it, got 'beta_dpo' (str)",
        ),
        (
            {"method": {"loss": "risk"}},
            f"method.loss must be one of {', '.join(LOSSES)}, got 'risk' (str)",
        ),
        (
            {"method": {"name": "ipo", "loss": "hinge"}},
            "method.loss has no effect with method.name ipo: only risk and schedule move the beta of another "
            "loss; remove it, or set method.name=hinge, got 'hinge' (str)",
        ),
        (
            {"method": {"name": "ipo"}, "dpo": {"label_smoothing": 0.1}},
            "dpo.label_smoothing has no effect with method.name ipo: remove it, or choose dpo, got 0.1",
        ),
        (
            {"ref_name": "other", "method": {"loss": "simpo"}},
            "ref_name has no effect with simpo, which needs no reference: remove it, got 'other' (str)",
        ),
        (
            {"method": {"loss": "ipo"}, "hinge": {"beta": 0.5}},
            "hinge.beta has no effect with method.name risk and method.loss ipo: remove it, or choose hinge, got 0.5",
        ),
        (
            {"method": {"loss": "ipo"}, "ipo": {"beta": 0.5}},
            "ipo.beta has no effect with method.name risk, which moves beta from beta_update.beta_0: set that "
            "instead, got 0.5",
        ),
        (
            {"method": {"loss": "bco_pair"}, "objective": {"f_divergence": "forward_kl"}},
            "objective.f_divergence forward_kl does not go with bco_pair, which reads more than the difference of a "
            "pair's log-ratios: leave it at reverse_kl, or choose another loss",
        ),
        (
            {"method": {"name": "sft"}, "objective": {"ld_alpha": 0.5}},
            "objective.ld_alpha has no effect with sft, which counts every token alike: leave it out",
        ),
        (
            {"objective": {"f_alpha": 0.3}},
            "objective.f_alpha has no effect with f_divergence reverse_kl: set alpha_divergence, or leave it at 0.5",
        ),
        (
            {"objective": {"add": {"dpo": 0.5}}},
            "objective.add.dpo names the method's own loss: remove it and set objective.weight, got 0.5",
        ),
        (
            {"method": {"name": "ipo"}, "objective": {"add": {"hinge": 1.0}}, "hinge": {"beta": 0.5}},
            "hinge.beta has no effect with method.name ipo, whose beta it takes: set ipo.beta instead, got 0.5",
        ),
        (
            {"objective": {"add": {"sft": 1.0, "nca_pair": 1.0}, "f_divergence": "js_divergence"}},
            "objective.f_divergence js_divergence does not go with nca_pair, which reads more than the difference of "
            "a pair's log-ratios: leave it at reverse_kl, or choose another loss",
        ),
        (
            {"objective": {"add": {"epsilon_dpo": 1.0}}},
            "unknown key objective.add.epsilon_dpo; did you mean epsilon_dpo?",
        ),
        (
            {"reference_sync": {"steps": 8}, "peft": {}},
            "reference_sync.steps moves a reference of its own, and with adapters the reference is the model without "
            "them: train all weights, or leave it out",
        ),
        (
            {"reference_sync": {"steps": 8}, "method": {"name": "simpo"}},
            "reference_sync.steps has no effect on a loss that needs no reference: leave it out, or choose another "
            "loss",
        ),
        (
            {"reference_sync": {"mixup_alpha": 1.0}},
            "reference_sync.mixup_alpha has no effect where the reference stays: set steps, or leave it out",
        ),
        ({"objective": {"ld_alpha": 1.5}}, "objective.ld_alpha must lie in [0, 1], got 1.5"),
    ],
)
def test_what_would_be_wrong_or_unread_is_refused(sections: dict[str, object], problem: str) -> None:
    assert problem_of(**sections) == problem


def test_a_setting_at_its_default_may_stand_anywhere() -> None:
    every = config_with().to_dict()
    for name in METHODS:
        assert config_with(**{**every, "method": {"name": name}}).method.name == name


def test_a_controller_reads_the_section_of_the_loss_it_steers() -> None:
    config = config_with(method={"loss": "ipo"}, ipo={"length_normalised": False})
    assert config.settings_of(config.method.loss) == {"beta": None, "length_normalised": False}
