"""Methods in real training runs: a new one in ten lines, states in checkpoints, no reference where none is needed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

import dynamic_dpo.trainers.policy
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods import (
    METHODS,
    WPO,
    AlphaDPO,
    AlphaDPOConfig,
    BetaDPO,
    BetaDPOConfig,
    Control,
    EpsilonDPO,
    EpsilonDPOConfig,
    PairForward,
    PreferenceMethod,
    Risk,
    RiskConfig,
    SimPO,
)
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.referenced_data import ReferencedData
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


class StopAfter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def make(folder: Path, method: PreferenceMethod, **settings: Any) -> PreferenceTrainer:
    overrides = settings.pop("args", {})
    return PreferenceTrainer(
        model=settings.pop("model", None) or tiny_llama(),
        args=training_arguments(folder, gradient_accumulation_steps=2, learning_rate=1e-2, **overrides),
        train_dataset=random_pairs(28),  # the last step is a short one
        processing_class=word_tokenizer(),
        method=method,
        engine=EngineConfig(reference_dir=str(folder.parent / "reference")),
        **settings,
    )


def losses_of(trainer: PreferenceTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_method_in_ten_lines_is_registered_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Square(PreferenceMethod):
        name = "square"
        beta = 0.05  # type: ignore[assignment]

        def losses(self, forward: PairForward, control: Control) -> torch.Tensor:
            return control.weight * (1.0 - control.beta * forward.margins).square()

    monkeypatch.setitem(METHODS, "square", Square)

    trainer = make(
        tmp_path / "run", METHODS["square"](), eval_dataset=random_pairs(28), args={"num_train_epochs": 4}
    )
    trainer.train()
    assert losses_of(trainer)[0] == pytest.approx(1.0, rel=1e-6)  # every margin is 0 before the first step
    assert trainer.evaluate()["eval_loss"] < 0.8
    assert json.loads((tmp_path / "run" / "run_summary.json").read_text())["method"]["name"] == "square"


ADAPTIVE = {
    "beta_dpo": lambda: BetaDPO(BetaDPOConfig(keep_share=0.5)),
    "beta_dpo-step": lambda: BetaDPO(BetaDPOConfig(keep_share=0.5), scope="step"),
    "epsilon_dpo": lambda: EpsilonDPO(EpsilonDPOConfig(epsilon=0.1)),
    "alpha_dpo": lambda: AlphaDPO(AlphaDPOConfig(alpha=0.3)),
    "risk-with-wpo": lambda: Risk(
        RiskConfig(warmup_steps=2, alpha=0.3, delta=0.25), pairs_per_update=4, loss=WPO()
    ),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, name: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    whole = make(tmp_path / "whole", ADAPTIVE[name](), args=saving)
    whole.train()
    fresh = json.dumps(ADAPTIVE[name]().state_dict())
    assert json.dumps(whole.method.state_dict()) != fresh

    make(tmp_path / "parts", ADAPTIVE[name](), args=saving, callbacks=[StopAfter(3)]).train()
    resumed = make(tmp_path / "parts", ADAPTIVE[name](), args=saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 8
    assert losses_of(resumed) == losses_of(whole)
    assert resumed.method.state_dict() == whole.method.state_dict()
    for key, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], weight), key


@pytest.mark.parametrize("name", ADAPTIVE)
def test_evaluation_moves_no_state(tmp_path: Path, name: str) -> None:
    trainer = make(tmp_path / "run", ADAPTIVE[name](), eval_dataset=random_pairs(8, seed=3))
    trainer.train()
    before = json.dumps(trainer.method.state_dict())
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert json.dumps(trainer.method.state_dict()) == before


@pytest.mark.parametrize("budget", [64, 4096])
@pytest.mark.parametrize("name", ["beta_dpo-step", "epsilon_dpo", "alpha_dpo"])
def test_the_loss_does_not_depend_on_the_cut_into_microbatches(
    tmp_path: Path, name: str, budget: int, first_losses: dict[str, list[float]]
) -> None:
    trainer = make(tmp_path / "run", ADAPTIVE[name](), args={"max_steps": 2})
    object.__setattr__(trainer.policy.scorer.config, "tokens_per_microbatch", budget)
    trainer.train()
    losses = losses_of(trainer)
    assert losses == pytest.approx(first_losses.setdefault(name, losses), rel=1e-5)


@pytest.fixture(scope="module")
def first_losses() -> dict[str, list[float]]:
    return {}


def test_a_method_without_reference_loads_and_scores_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the reference was touched")

    for loading in ("find_policy", "load_policy_files"):
        monkeypatch.setattr(dynamic_dpo.trainers.policy, loading, refuse)
    monkeypatch.setattr(dynamic_dpo.trainers.policy.PolicyAndReference, "open_reference", refuse)
    monkeypatch.setattr(ReferencedData, "attach", refuse)
    trainer = make(
        tmp_path / "run", SimPO(), ref_model="a-model-that-is-nowhere", args={"num_train_epochs": 4}
    )
    assert "method simpo needs no reference" in caplog.text
    trainer.train()
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert losses_of(trainer)[-1] < losses_of(trainer)[0]


def test_with_adapters_the_live_reference_is_the_policy_with_them_off(tmp_path: Path) -> None:
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path / "run", EpsilonDPO(EpsilonDPOConfig(epsilon=0.1)), peft_config=adapters)
    trainer.train()
    assert trainer.policy.reference_model is None
    assert trainer.method.beta != 0.01


def test_a_controller_steers_each_loss_in_training(tmp_path: Path) -> None:
    for name in ("robust", "ipo", "hinge", "simpo"):
        config = RiskConfig(warmup_steps=1, alpha=0.3, delta=0.25)
        trainer = make(tmp_path / name, Risk(config, pairs_per_update=4, loss=METHODS[name]()))
        trainer.train()
        assert trainer.method.beta != 0.1
        assert trainer.method.summary()["loss"] == {"name": name}
