"""The likelihood of chosen answers: over a batch's tokens or over answers, worked and in real steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import SFT, PairForward, Risk, SFTMethodConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

# Chosen answers of 8 and 2 tokens.
FORWARD = PairForward(
    torch.tensor([-16.0, -3.0], dtype=torch.float64),
    torch.tensor([-1.0, -1.0], dtype=torch.float64),
    torch.zeros(2),
    torch.zeros(2),
    torch.tensor([8, 2]),
    torch.tensor([4, 4]),
)


def losses_of(method: SFT, forward: PairForward) -> list[float]:
    losses: list[float] = method.losses(forward, method.control(method.evidence(forward))).tolist()
    return losses


def test_the_mean_of_a_batch_is_its_mean_over_tokens() -> None:
    batch = replace(FORWARD, batch_lengths=torch.tensor([5.0, 4.0]))
    assert losses_of(SFT(), batch) == pytest.approx([16 / 5, 3 / 5], rel=1e-12)
    assert sum(losses_of(SFT(), batch)) / 2 == pytest.approx(19 / 10, rel=1e-12)


def test_over_answers_and_in_evaluation_each_counts_by_itself() -> None:
    batch = replace(FORWARD, batch_lengths=torch.tensor([5.0, 4.0]))
    assert losses_of(SFT(SFTMethodConfig(mean_over="answers")), batch) == pytest.approx([2.0, 1.5], rel=1e-12)
    assert losses_of(SFT(), FORWARD) == pytest.approx([2.0, 1.5], rel=1e-12)


def test_it_has_no_beta_to_steer() -> None:
    with pytest.raises(ConfigError, match="cannot steer the beta of sft: its loss has no beta"):
        Risk(loss=SFT())


@pytest.mark.parametrize("scope", ["micro", "step"])
@pytest.mark.parametrize("budget", [48, 4096])
def test_a_steps_loss_is_the_mean_over_tokens_whatever_the_cut(
    tmp_path: Path, budget: int, scope: str
) -> None:
    rows = random_pairs(8, seed=4)
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(
            tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=word_tokenizer(),
        method=SFT(scope=scope),  # type: ignore[arg-type]
        engine=EngineConfig(tokens_per_microbatch=budget),
    )
    pairs = PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], range(8))
    with torch.no_grad():
        scored = trainer.policy.scorer.score(trainer.model, pairs)
    logps, lengths = scored.chosen.double(), scored.chosen_lengths.double()
    assert lengths.unique().numel() > 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float((-logps / lengths).mean()), rel=1e-5)

    order = next(iter(trainer.get_train_dataloader()))["pairs"].rows
    groups = [order] if scope == "step" else [order[:4], order[4:]]
    expected = sum(float(-logps[rows].sum() / lengths[rows].sum()) for rows in groups) / len(groups)
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names


def test_tokens_that_are_only_read_do_not_count(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(tmp_path, per_device_train_batch_size=2),
        train_dataset=random_pairs(8, seed=4),
        processing_class=word_tokenizer(),
        method=SFT(),
    )
    masks = [[1, 0, 0, 1], None]
    pairs = PairBatch([[5, 6], [7]], [[8, 9, 10, 11], [12, 13]], [[14], [15]], [0, 1], chosen_masks=masks)
    with torch.no_grad():
        scored = trainer.policy.scorer.score(trainer.model, pairs)
    assert scored.chosen_lengths.tolist() == [2, 2]
    loss = trainer.whole_step.run(trainer.model, pairs, step=0, on_update=lambda *update: None)
    assert float(loss) == pytest.approx(float(-scored.chosen.sum() / 4), rel=1e-5)
