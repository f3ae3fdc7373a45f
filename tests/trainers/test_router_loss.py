"""The balancing loss of a mixture of experts in training: added by pairs, logged, and left out where it is 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from trl import DPOConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.router import router_loss_of
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import VOCAB, random_pairs, training_arguments, word_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}


def tiny_mixtral(coefficient: float) -> Any:
    torch.manual_seed(0)
    others = {"initializer_range": 0.2, "sliding_window": None, "router_aux_loss_coef": coefficient}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS, **others))


def first_entry(
    folder: Path, coefficient: float, *, budget: int | None = None, **settings: Any
) -> dict[str, float]:
    arguments = {"args": training_arguments(folder, max_steps=1), **settings}
    trainer = PreferenceTrainer(
        model=tiny_mixtral(coefficient),
        train_dataset=random_pairs(4),
        processing_class=word_tokenizer(),
        method=DPO(),
        engine=EngineConfig(tokens_per_microbatch=budget, reference_dir=str(folder / "reference")),
        **arguments,
    )
    trainer.train()
    entry: dict[str, float] = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return entry


@pytest.mark.parametrize("budget", [None, 40], ids=["one micro-batch", "several"])
def test_the_loss_has_its_share_and_the_log_says_how_much(tmp_path: Path, budget: int | None) -> None:
    without = first_entry(tmp_path, 0.0, budget=budget)
    entry = first_entry(tmp_path, 0.5, budget=budget)
    assert "aux_loss" not in without
    assert entry["loss"] == pytest.approx(without["loss"] + 0.5 * entry["aux_loss"], rel=1e-6)
    # The mean of the micro-batches', by their pairs.
    model, rows = tiny_mixtral(0.5), random_pairs(4)
    pairs = PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], range(4))
    scorer = PairScorer(model, EngineConfig(tokens_per_microbatch=budget))
    scorer.router = router_loss_of(model)
    plan = scorer.plan(pairs)
    assert (len(plan) > 1) == (budget is not None)
    losses = [(len(part), scorer.score(model, pairs.select(part)).router_loss) for part in plan]
    expected = sum(count * loss.item() for count, loss in losses if loss is not None) / 4
    assert entry["aux_loss"] == pytest.approx(expected, rel=1e-5)


def test_trls_own_setting_goes_before_the_models(tmp_path: Path) -> None:
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        router_aux_loss_coef=0.25,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    entry = first_entry(tmp_path, 0.5, args=arguments)
    assert entry["loss"] == pytest.approx(0.6931472 + 0.25 * entry["aux_loss"], rel=1e-5)
