"""What fine-tuning costs, by hand: padding is computed and not needed, and packed rows end where they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from dynamic_dpo.trainers.sft_trainer import build_sft_trainer
from dynamic_dpo.trainers.watch.model_work import ModelWork, PairTokens
from dynamic_dpo.trainers.watch.row_cost import row_tokens
from tiny import tiny_llama, word_tokenizer

LENGTHS = (5, 9, 7, 12, 6, 8, 10, 4)
PROMPT = 3


def train(folder: Path, **settings: Any) -> Any:
    rows = {
        "input_ids": [list(range(4, 4 + length)) for length in LENGTHS],
        "completion_mask": [[0] * PROMPT + [1] * (length - PROMPT) for length in LENGTHS],
    }
    own = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1, **settings}
    trainer = build_sft_trainer(
        tiny_llama(),
        SFTConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
            num_train_epochs=2, **own,
        ),
        train_dataset=Dataset.from_dict(rows),
        tokenizer=word_tokenizer(),
    )  # fmt: skip
    trainer.train()
    return trainer


# Of n tokens of a row n - 1 are needed, n - 3 predict, and each attends to itself and those before it.
NEEDED = PairTokens(
    needed=sum(n - 1 for n in LENGTHS),
    predicting=sum(n - PROMPT for n in LENGTHS),
    attended=sum((n - 1) * n // 2 for n in LENGTHS),
)


def test_a_run_needs_every_row_once_an_epoch_and_computes_its_padding_besides(tmp_path: Path) -> None:
    cost = train(tmp_path).cost
    found = cost.summary()
    assert found["needed_tokens"] == 2 * NEEDED.needed == 2 * 53
    assert found["model_flops"] == 2 * ModelWork.of(tiny_llama()).training_flops(NEEDED)
    # Two rows of a batch are as long as the longer one.
    assert 2 * sum(LENGTHS) < found["computed_tokens"] <= 2 * 2 * (12 + 10 + 9 + 8)
    assert found["arithmetic"] == "float32"


def test_the_log_says_the_rates_of_the_steps_since_the_last_entry(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        assert entry["speed/computed_tokens_per_second"] > entry["speed/needed_tokens_per_second"] > 0
        assert 0 < entry["speed/share_of_matmul_limit"] < 1
    assert entries[-1]["speed/seconds_left"] == 0.0
    assert entries[0]["speed/seconds_left"] > 0


def test_rows_behind_one_another_end_where_positions_begin_anew() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100, 7]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    ids = torch.ones_like(positions)
    # Rows of four and of three tokens.
    expected = PairTokens(needed=3 + 2, predicting=3, attended=6 + 3)
    assert row_tokens({"input_ids": ids, "labels": labels, "position_ids": positions}) == expected
    padded = {
        "input_ids": torch.ones(1, 9, dtype=torch.long),
        "labels": torch.nn.functional.pad(labels, (0, 2), value=-100),
        "position_ids": torch.nn.functional.pad(positions, (0, 2)),
        "attention_mask": torch.tensor([[1] * 7 + [0] * 2]),
    }
    assert row_tokens(padded) == expected


def test_without_mask_and_positions_every_row_is_full() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    assert row_tokens({"input_ids": ids, "labels": ids}) == PairTokens(needed=4, predicting=4, attended=6)


@pytest.mark.parametrize("method", ["count", "drain"])
def test_counting_changes_no_number_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from dynamic_dpo.trainers.watch.row_cost import RowCost

    counted = train(tmp_path / "counted")
    monkeypatch.setattr(RowCost, method, lambda *args: {})
    alone = train(tmp_path / "alone")
    assert all(map(torch.equal, counted.model.parameters(), alone.model.parameters()))
    losses = [
        [entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (counted, alone)
    ]
    assert losses[0] == losses[1]
