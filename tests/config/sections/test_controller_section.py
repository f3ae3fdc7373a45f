"""The controller's newer keys in a file: what they become, and what is refused with the key's own name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamic_dpo.cli.build_training import build_method
from dynamic_dpo.config import get_training_config
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import Risk, RiskConfig


def config(**sections: dict[str, Any]) -> Any:
    return get_training_config({"policy_name": "m", **sections})


def test_every_setting_of_the_risk_controller_has_a_key_with_its_default() -> None:
    # Files follow the paper's 0.1, Python the original's 0.05.
    assert config().read(RiskConfig) == RiskConfig(momentum=0.1)


def test_target_and_monitor_reach_the_controller() -> None:
    settings = config(
        method={"mode": "target"},
        risk_target={"margin_budget": 12, "gain_p": 0.5, "gain_i": 0.01},
        monitor={"mode": "warn", "rate": 0.3, "threshold": 1000},
    ).read(RiskConfig)
    assert (settings.mode, settings.margin_budget, settings.gain_p, settings.gain_i) == (
        "target",
        12.0,
        0.5,
        0.01,
    )
    assert (settings.monitor, settings.rate_to_detect, settings.monitor_threshold) == ("warn", 0.3, 1000.0)


def test_a_method_without_a_controller_asks_for_nothing_that_only_the_controller_needs() -> None:
    assert config(method={"name": "ipo", "mode": "target"}).method.name == "ipo"


def test_alpha_scale_auto_is_resolved_when_the_method_is_built() -> None:
    args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=8, world_size=2)
    method = build_method(config(method={"scope": "step", "alpha_scale": "auto", "mode": "rm"}), args)
    assert isinstance(method, Risk)
    # 4 x 8 x 2 pairs an update, 4 pairs a device batch.
    assert (method.pairs_per_update, method.config.scale) == (64, 16.0)


def test_a_bare_off_means_off() -> None:
    assert config(monitor={"mode": False}).monitor.mode == "off"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {"mode": "target"}}, "risk_target.margin_budget is needed by method.mode target"),
        ({"monitor": {"rate": 0.05}}, r"monitor.rate must be above risk_test.delta \(0.1\), got 0.05"),
        (
            {"method": {"name": "schedule", "mode": "target"}},
            "risk_target.margin_budget is needed by method.mode target",
        ),
        ({"method": {"alpha_scale": 0}}, "method.alpha_scale must be greater than 0, got 0$"),
        (
            {"method": {"alpha_scale": "automatic"}},
            r"method.alpha_scale must be a number or auto, got 'automatic' \(str\)",
        ),
        ({"method": {"mode": "robbins"}}, "method.mode must be one of paper, exact, rm, target"),
        ({"monitor": {"mode": True}}, "monitor.mode must be one of off, report, warn, stop"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**sections)
