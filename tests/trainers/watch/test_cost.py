"""What a run costs is counted on the host, over all ranks, and changes no number of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import DPO, BetaDPO, BetaDPOConfig, EpsilonDPO, EpsilonDPOConfig, PreferenceMethod
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.watch.cost import RunCost
from dynamic_dpo.trainers.watch.model_work import ModelWork, PairTokens
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

NUM_PAIRS = 16


def train(folder: Path, *, method: PreferenceMethod | None = None, **settings: Any) -> PreferenceTrainer:
    own = {"logging_steps": 2, "learning_rate": 1e-2, **settings.pop("args", {})}
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(folder, **own),
        train_dataset=random_pairs(NUM_PAIRS),
        processing_class=word_tokenizer(),
        method=method or DPO(),
        **settings,
    )
    trainer.train()
    return trainer


def all_tokens() -> PairTokens:
    rows = random_pairs(NUM_PAIRS)
    return PairTokens.of(PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], rows["row"]))


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run_summary.json").read_text())
    return found


def test_record_and_log_say_what_the_run_needed_and_computed(tmp_path: Path) -> None:
    train(tmp_path)
    summary = record(tmp_path)
    cost, tokens = summary["cost"], all_tokens()
    assert cost["needed_tokens"] == cost["computed_tokens"] == tokens.needed
    assert cost["model_flops"] == ModelWork.of(tiny_llama()).training_flops(tokens)
    seconds, rates = summary["training_seconds"], cost["rates"]
    assert rates["needed_tokens_per_second"] == pytest.approx(tokens.needed / seconds)
    assert rates["tflop_per_second"] == pytest.approx(cost["model_flops"] / seconds / 1e12)
    limit = cost["device_limits_tflop_per_second"]["matmul_limit"]
    assert rates["share_of_matmul_limit"] == pytest.approx(rates["tflop_per_second"] / limit)
    assert 0 < rates["share_of_matmul_limit"] < 1
    assert cost["arithmetic"] == "float32"
    assert cost["peak_memory_bytes_by_device"] == {f"rank 0: {cost['device']}": summary["peak_memory_bytes"]}


def test_every_entry_of_the_log_says_what_its_own_steps_cost(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["speed/needed_tokens_per_second"] == entry["speed/computed_tokens_per_second"] > 0
        assert 0 < entry["speed/share_of_matmul_limit"] < 1
        assert "speed/share_of_nominal_peak" not in entry
    assert entries[0]["speed/seconds_left"] > entries[1]["speed/seconds_left"] == 0.0


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        # (forward passes of the policy beside the training's, of the reference)
        (DPO(), (0, 0)),
        (BetaDPO(BetaDPOConfig()), (1, 0)),
        (EpsilonDPO(EpsilonDPOConfig()), (0, 1)),
    ],
    ids=["dpo", "beta_dpo", "epsilon_dpo"],
)
def test_passes_that_a_method_needs_beside_the_training_count(
    tmp_path: Path, method: PreferenceMethod, passes: tuple[int, int]
) -> None:
    train(tmp_path, method=method)
    cost, tokens, work = record(tmp_path)["cost"], all_tokens(), ModelWork.of(tiny_llama())
    assert cost["computed_tokens"] == (1 + sum(passes)) * tokens.needed
    assert cost["model_flops"] == pytest.approx(
        work.training_flops(tokens) + sum(passes) * work.forward_flops(tokens)
    )


def test_the_plain_layout_computes_more_than_is_needed(tmp_path: Path) -> None:
    train(tmp_path, engine=EngineConfig(layout="plain"))
    cost, tokens = record(tmp_path)["cost"], all_tokens()
    assert cost["needed_tokens"] == tokens.needed
    assert cost["computed_tokens"] > 1.2 * tokens.needed
    assert cost["model_flops"] == ModelWork.of(tiny_llama()).training_flops(tokens)


def test_under_an_adapter_fewer_operations_are_needed(tmp_path: Path) -> None:
    train(tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    tokens, whole = all_tokens(), ModelWork.of(tiny_llama())
    assert 0.6 < record(tmp_path)["cost"]["model_flops"] / whole.training_flops(tokens) < 0.75


def test_a_resumed_run_counts_its_own_steps(tmp_path: Path) -> None:
    train(tmp_path, args={"save_strategy": "steps", "save_steps": 2})
    whole = record(tmp_path)["cost"]["needed_tokens"]
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(tmp_path, logging_steps=2, learning_rate=1e-2),
        train_dataset=random_pairs(NUM_PAIRS),
        processing_class=word_tokenizer(),
        method=DPO(),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert 0 < record(tmp_path)["cost"]["needed_tokens"] < whole


def test_counting_changes_no_number_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(trainer: PreferenceTrainer) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.model.lm_head.weight, torch.get_rng_state()

    counted = numbers(train(tmp_path / "counted"))
    for name in ("on_train_begin", "on_step_begin", "on_step_end"):
        monkeypatch.setattr(RunCost, name, lambda *args, **kwargs: None)
    for name in ("count", "drain", "summary"):
        monkeypatch.setattr(RunCost, name, lambda *args, **kwargs: {})
    alone = numbers(train(tmp_path / "alone"))
    assert counted[0] == alone[0]
    assert torch.equal(counted[1], alone[1])
    assert torch.equal(counted[2], alone[2])
