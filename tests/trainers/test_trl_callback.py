"""The risk controller in an unmodified TRL trainer: betas, what stays TRL's own, resuming and refusals."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from dynamic_dpo import RiskBetaCallback
from dynamic_dpo.errors import CheckpointError, ConfigError, ModelError, NonFiniteError, RunStopped
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.trainers.trl_callback import reward_margins
from tiny import random_pairs, tiny_llama, word_tokenizer

# The installed TRL still asks transformers for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS: dict[str, Any] = {
    "warmup_steps": 2,
    "alpha": 0.3,
    "delta": 0.25,
    "window_multiple": 2,
    "momentum": 0.1,
}


def trl_rows(count: int = 24) -> Dataset:
    rows = random_pairs(count, seed=3)

    def words(ids: list[int]) -> str:
        return " ".join(f"w{i - 4}" for i in ids)

    return Dataset.from_dict(
        {
            "prompt": [words(ids) for ids in rows["prompt_ids"]],
            "chosen": [" " + words(ids[:-1]) for ids in rows["chosen_ids"]],
            "rejected": [" " + words(ids[:-1]) for ids in rows["rejected_ids"]],
        }
    )


def trl_trainer(folder: Path, **overrides: Any) -> DPOTrainer:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "activation_checkpointing": False,
        "max_steps": 6,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return DPOTrainer(
        model=tiny_llama(seed=1),
        ref_model=copy.deepcopy(tiny_llama(seed=1)),
        args=DPOConfig(**(settings | overrides)),
        train_dataset=trl_rows(),
        processing_class=word_tokenizer(),
    )


class Watched(RiskBetaCallback):
    """Keeps what the controller was given and which betas the losses were formed with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[torch.Tensor] = []
        self.betas: list[float] = []

    def _observe(self, margins: torch.Tensor) -> None:
        self.seen.append(margins.clone())
        super()._observe(margins)
        self.betas.append(self.trainer.beta)


def run(
    folder: Path, config: RiskConfig, *, resume: Any = None, **overrides: Any
) -> tuple[Watched, DPOTrainer]:
    callback = Watched(config)
    trainer = callback.attach(trl_trainer(folder, **overrides))
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer


@pytest.mark.parametrize(("mode", "scope"), [("paper", "micro"), ("exact", "step"), ("target", "micro")])
def test_the_betas_are_the_controllers_on_the_same_margins(tmp_path: Path, mode: Any, scope: Any) -> None:
    config = RiskConfig(**SETTINGS, mode=mode, scope=scope, margin_budget=1.0)
    callback, trainer = run(tmp_path, config)
    size = 8 if scope == "step" else 4
    assert [len(margins) for margins in callback.seen] == [size] * (48 // size)
    alone = Risk(config, pairs_per_update=size)
    assert [alone.observe(margins)["risk/beta"] for margins in callback.seen] == callback.betas
    assert trainer.beta == callback.betas[-1]
    assert len(set(callback.betas)) > 3, "a beta that stands still proves nothing"
    logged = [entry["risk/beta"] for entry in trainer.state.log_history if "risk/beta" in entry]
    assert len(logged) == 6


def test_the_margins_are_those_of_an_independent_computation(tmp_path: Path) -> None:
    trainer = trl_trainer(tmp_path, max_steps=1, gradient_accumulation_steps=1)
    # A policy that has left the reference, so that the margins are not 0.
    trainer.model.load_state_dict(tiny_llama(seed=2).state_dict())
    batches: list[Any] = []
    inner = trainer.compute_loss

    def keep(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append({key: value.clone() for key, value in inputs.items()})
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = keep
    callback = Watched(RiskConfig(beta_0=0.37))
    policy, reference = tiny_llama(seed=2).eval(), tiny_llama(seed=1).eval()
    callback.attach(trainer).train()

    def logps(model: Any) -> torch.Tensor:
        batch = batches[0]
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
                :, :-1
            ]
        chosen = logits.double().log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return (chosen * batch["completion_mask"][:, 1:]).sum(1)

    ratios = logps(policy) - logps(reference)
    expected = ratios[:4] - ratios[4:]
    assert callback.seen[0].double() == pytest.approx(expected, abs=1e-4)
    assert expected.abs().max() > 1.0


def test_with_alpha_0_the_run_is_trls_own(tmp_path: Path) -> None:
    plain = trl_trainer(tmp_path / "plain", beta=0.2)
    plain.train()
    _, trainer = run(tmp_path / "risk", RiskConfig(**{**SETTINGS, "alpha": 0.0, "beta_0": 0.2}))
    ours, theirs = trainer.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, plain)]
    assert losses[0] == losses[1]


def test_a_moved_beta_reaches_the_loss(tmp_path: Path) -> None:
    _, plain = run(tmp_path / "a", RiskConfig(**{**SETTINGS, "alpha": 0.0}))
    _, moved = run(tmp_path / "b", RiskConfig(**SETTINGS))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (plain, moved)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1]


@pytest.mark.parametrize("restores_callbacks", [False, True])
def test_a_resumed_run_has_the_betas_of_an_uninterrupted_one(
    tmp_path: Path, restores_callbacks: bool
) -> None:
    config = RiskConfig(**SETTINGS, mode="exact")
    saving = {
        "save_strategy": "steps",
        "save_steps": 3,
        "restore_callback_states_from_checkpoint": restores_callbacks,
    }
    whole, _ = run(tmp_path / "whole", config, **saving)
    first, _ = run(tmp_path / "cut", config, **{**saving, "max_steps": 3})
    second, trainer = run(tmp_path / "cut", config, resume=True, **saving)
    assert first.betas + second.betas == whole.betas
    assert trainer.beta == whole.betas[-1]
    assert len(set(second.betas)) > 1


def test_evaluation_leaves_the_controller_alone(tmp_path: Path) -> None:
    callback, trainer = run(tmp_path, RiskConfig(**SETTINGS), max_steps=3)
    before = callback.controller.state_dict()  # type: ignore[union-attr]
    metrics = trainer.evaluate(trl_rows(8))
    assert "eval_rewards/margins" in metrics
    assert callback.controller.state_dict() == before  # type: ignore[union-attr]


def test_a_checkpoint_without_the_controller_is_refused(tmp_path: Path) -> None:
    trl_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    with pytest.raises(CheckpointError, match="step 2 holds no state of the risk controller"):
        run(tmp_path, RiskConfig(**SETTINGS), resume=True)


def test_the_monitor_saves_and_stops(tmp_path: Path) -> None:
    config = RiskConfig(
        **SETTINGS, mode="target", margin_budget=-1000.0, monitor="stop", monitor_threshold=5.0
    )
    with pytest.raises(RunStopped, match="the rate of exceedance has risen"):
        run(tmp_path, config, max_steps=50)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert int(checkpoint.name.removeprefix("checkpoint-")) < 10


def test_margins_that_are_not_finite_are_left_out_and_end_the_run_when_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = RiskBetaCallback(RiskConfig(**SETTINGS), max_nonfinite=2)
    callback.attach(trl_trainer(tmp_path))
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        callback._observe(torch.tensor([math.nan, 1.0, math.inf]))
    assert "2 of 3 margins are NaN or infinite" in caplog.text
    with pytest.raises(NonFiniteError, match="More than max_nonfinite = 2"):
        callback._observe(torch.tensor([math.nan]))


def test_weights_that_cannot_take_a_step_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trl_trainer(tmp_path)
    RiskBetaCallback().attach(trainer)
    assert "weights of 16 bits are trained" not in caplog.text
    trainer.model.to(torch.bfloat16)
    RiskBetaCallback().attach(trainer)
    assert "weights of 16 bits are trained" in caplog.text


def test_what_cannot_be_attached_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"needs a trl\.DPOTrainer, got object"):
        RiskBetaCallback().attach(object())
    trainer = trl_trainer(tmp_path)
    callback = RiskBetaCallback()
    callback.attach(trainer)
    with pytest.raises(ConfigError, match="attached already"):
        callback.attach(trainer)
    loose = trl_trainer(tmp_path)
    loose.add_callback(RiskBetaCallback())
    with pytest.raises(ConfigError, match="is not attached"):
        loose.train()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.17.0")
    with pytest.raises(ConfigError, match=r"inside TRL 1\.16, and 1\.17\.0 is installed"):
        RiskBetaCallback().attach(trainer)


def test_rewards_that_do_not_fit_together_are_no_margins() -> None:
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 3.0])
    accuracies = torch.tensor([1.0, 0.0])
    with pytest.raises(ModelError, match="could not be found"):
        reward_margins([chosen, rejected, accuracies, chosen - rejected + 1])
    with pytest.raises(ModelError, match="could not be found"):
        reward_margins([chosen, rejected, 1 - accuracies, chosen - rejected])
    with_nan = torch.tensor([math.nan, 1.0])
    found = reward_margins([with_nan, rejected, torch.tensor([0.0, 0.0]), with_nan - rejected])
    assert math.isnan(found[0])
    assert found[1] == -2.0
