"""From a file's settings to the method of a run, through the table alone."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest

from dynamic_dpo.cli.build_training import build_method
from dynamic_dpo.config import get_training_config
from dynamic_dpo.methods import IPO, METHODS, BuildContext, PreferenceMethod, Risk, Schedule
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig
from dynamic_dpo.utils.settings import setting, stated_by

ARGS = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2, world_size=2)


def settings_of(name: str) -> tuple[Field[Any], ...]:
    settings = METHODS[name].Settings
    return fields(settings) if settings is not None else ()


def built(**sections: Any) -> PreferenceMethod:
    return build_method(get_training_config({"policy_name": "m", **sections}), ARGS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_by_its_name_with_the_runs_beta(name: str) -> None:
    method = built(method={"name": name}, beta_update={"beta_0": 0.3})
    assert type(method) is METHODS[name]
    # The authors' own where theirs is of another size.
    (own,) = [stated_by(entry).file_default for entry in settings_of(name) if entry.name == "beta"] or [None]
    assert method.beta == (0.3 if own is None else own)
    assert built(method={"name": "simpo"}).beta == 2.0


@pytest.mark.parametrize("name", [name for name in METHODS if "beta" in {e.name for e in settings_of(name)}])
def test_a_methods_own_beta_goes_before_the_runs(name: str) -> None:
    assert built(method={"name": name}, **{name: {"beta": 0.7}}).beta == 0.7
    assert built(method={"name": name}, beta_update={"beta_0": 0.3}, **{name: {"beta": None}}).beta == 0.3


def test_every_key_of_a_section_reaches_the_method() -> None:
    given = {"beta": 0.2, "gain": 0.5, "keep_share": 0.7, "momentum": 0.8, "seed": 3}
    method: Any = built(method={"name": "beta_dpo", "scope": "step"}, beta_dpo=given)
    assert vars(method.config) == given
    assert method.scope == "step"
    assert built(method={"name": "alpha_dpo", "scope": "step"}).scope == "step"
    assert built(method={"name": "epsilon_dpo"}).scope == "step"


@pytest.mark.parametrize(("name", "kind"), [("risk", Risk), ("schedule", Schedule)])
@pytest.mark.parametrize("loss", [name for name in METHODS if not METHODS[name].why_not_steered])
def test_a_controller_is_built_around_the_loss_it_steers(name: str, kind: type, loss: str) -> None:
    method: Any = built(method={"name": name, "loss": loss}, beta_update={"beta_0": 0.3})
    assert type(method) is kind
    assert type(method.loss) is METHODS[loss]
    assert method.needs == method.loss.needs
    assert method.beta == method.loss.beta == 0.3


def test_a_steered_losss_settings_reach_it() -> None:
    method: Any = built(method={"loss": "ipo"}, ipo={"length_normalised": False})
    assert isinstance(method.loss, IPO)
    assert not method.loss.config.length_normalised
    smoothed: Any = built(dpo={"label_smoothing": 0.2})
    assert smoothed.loss.config.label_smoothing == 0.2


def test_a_loss_whose_settings_have_no_beta_can_be_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class HeightConfig:
        height: float = setting(1.0, "Loss at margin 0.")

    class Tall(FixedBetaMethod):
        name = "tall"
        Settings = HeightConfig

    monkeypatch.setitem(METHODS, "tall", Tall)
    config: Any = SimpleNamespace(
        method=SimpleNamespace(name="risk", loss="tall", scope="micro"),
        beta_update=SimpleNamespace(beta_0=0.3),
        settings_of=lambda name: {"beta_0": 0.3} if name == "risk" else {"height": 2.0},
        read=lambda component: component(),
        objective=SimpleNamespace(added=dict),
    )
    method: Any = build_method(config, ARGS)
    assert (method.beta, method.loss.config) == (0.3, HeightConfig(2.0))


def test_an_objective_changes_the_loss_under_a_controller_and_a_method_by_itself() -> None:
    given = {"nll_weight": 0.5, "ld_alpha": 0.3}
    steered: Any = built(method={"loss": "ipo"}, objective=given)
    assert isinstance(steered, Risk)
    assert isinstance(steered.loss, Adjusted)
    assert isinstance(steered.loss.loss, IPO)
    assert steered.loss.config == ObjectiveConfig(nll_weight=0.5, ld_alpha=0.3)
    assert steered.needs.tail_weight == 0.3
    alone: Any = built(method={"name": "beta_dpo", "scope": "step"}, objective={"nll_weight": 0.5})
    assert (alone.name, type(alone.loss), alone.scope) == ("beta_dpo", METHODS["beta_dpo"], "step")
    assert type(built(method={"name": "ipo"})) is IPO


def test_losses_are_added_with_the_settings_of_their_sections_and_the_methods_beta() -> None:
    given = {"weight": 0.8, "add": {"bco_pair": 0.2, "sft": 1.0}}
    for sections in ({"method": {"loss": "ipo"}}, {"method": {"name": "ipo"}}):
        method: Any = built(
            **sections, objective=given, sft={"mean_over": "answers"}, beta_update={"beta_0": 0.3}
        )
        summed = method.loss if isinstance(method, Risk) else method
        assert (summed.name, summed.config.weight) == ("ipo", 0.8)
        assert [(loss.name, weight) for loss, weight in zip(summed.added, summed.weights, strict=True)] == [
            ("sft", 1.0),
            ("bco_pair", 0.2),
        ]
        assert summed.added[0].config.mean_over == "answers"
        assert method.beta == 0.3
        assert method.summary()["loss" if isinstance(method, Risk) else "objective"]


def test_a_controller_is_sized_for_its_batches() -> None:
    assert built(method={"scope": "micro"}).pairs_per_update == 8  # type: ignore[attr-defined]
    assert built(method={"scope": "step"}).pairs_per_update == 16  # type: ignore[attr-defined]


def test_a_method_without_settings_is_built_without_them() -> None:
    class Bare(PreferenceMethod):
        name = "bare"

    assert isinstance(Bare.build(BuildContext({}, 0.1, "micro", lambda scope: 1)), Bare)
