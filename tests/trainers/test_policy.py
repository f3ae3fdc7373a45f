"""Who answers with scores and for how long: a training's models are the user's own again when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.methods import DPO, DPOMethodConfig, EpsilonDPO, EpsilonDPOConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def trainer_of(folder: Path, model: Any, reference: Any = None, *, method: Any = None, **args: Any) -> Any:
    return PreferenceTrainer(
        model,
        reference,
        training_arguments(folder, max_steps=2, **args),
        random_pairs(12),
        random_pairs(6, seed=3),
        word_tokenizer(),
        method=method or DPO(DPOMethodConfig(beta=0.3)),
    )


@pytest.mark.parametrize("method", [None, EpsilonDPO(EpsilonDPOConfig())], ids=["stored", "live reference"])
def test_after_training_both_models_have_their_own_forward(tmp_path: Path, method: Any) -> None:
    policy, reference = tiny_llama(seed=1), tiny_llama()
    trainer = trainer_of(tmp_path, policy, reference, method=method)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert "forward" not in vars(policy)
    assert "forward" not in vars(reference)


def test_a_training_that_fails_leaves_the_models_forward_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    trainer = trainer_of(tmp_path, model)
    monkeypatch.setattr(trainer.whole_step, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "forward" not in vars(model)


def test_under_autocast_a_policy_is_evaluated_and_trained_again_after_its_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_llama(), bf16=True)
    trainer.train()
    during = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == during
    # Accelerate's wrapping for autocast stays, around the model's own forward.
    assert trainer.model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 96)
    trainer.train()
    # The same pairs again: what the first training learned is there.
    assert trainer.state.log_history[0]["loss"] < 0.2
