"""The reference pass of whole runs: what hits the store, what misses it, and that its numbers are the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods import DPO, DPOMethodConfig
from dynamic_dpo.trainers import PreferenceTrainer, RiskBetaDPOTrainer
from helpers_trl import arguments
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def run(
    folder: Path, *, rows: Dataset | None = None, beta: float = 0.1, steps: int = 1, **settings: Any
) -> Any:
    overrides = settings.pop("args", {})
    trainer = PreferenceTrainer(
        model=settings.pop("model", None) or tiny_llama(),
        args=training_arguments(folder, max_steps=steps, **overrides),
        train_dataset=random_pairs(12) if rows is None else rows,
        processing_class=word_tokenizer(),
        method=DPO(DPOMethodConfig(beta=beta)),
        **settings,
    )
    trainer.train()
    return trainer


def counted(folder: Path) -> tuple[int, int]:
    summary = json.loads((folder / "run_summary.json").read_text())
    return summary["reference_computed"], summary["reference_reused"]


def lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")


def test_a_second_run_with_other_settings_computes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "a")
    assert counted(tmp_path / "a") == (12, 0)
    run(tmp_path / "b", beta=0.7, args={"learning_rate": 5e-3, "seed": 9, "per_device_train_batch_size": 2})
    assert counted(tmp_path / "b") == (0, 12)


def test_full_training_and_adapters_of_any_rank_share_the_store(tmp_path: Path) -> None:
    run(tmp_path / "a", peft_config=lora(2))
    assert counted(tmp_path / "a") == (12, 0)
    run(tmp_path / "b", peft_config=lora(4))
    assert counted(tmp_path / "b") == (0, 12)
    run(tmp_path / "c")
    assert counted(tmp_path / "c") == (0, 12)


def test_other_weights_another_cut_or_another_dtype_miss(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", model=tiny_llama(seed=1))
    assert counted(tmp_path / "b") == (12, 0)
    shorter = random_pairs(12).map(lambda row: {"chosen_ids": row["chosen_ids"][:3]})
    changed = sum(len(ids) > 3 for ids in random_pairs(12)["chosen_ids"])
    run(tmp_path / "c", rows=shorter)
    assert counted(tmp_path / "c") == (changed, 12 - changed)
    assert changed > 0
    run(tmp_path / "d", model=tiny_llama(dtype=torch.float64))
    assert counted(tmp_path / "d") == (12, 0)


@pytest.mark.parametrize("kind", ["float32", "autocast", "weights", "reference"])
def test_under_sixteen_bits_a_reference_of_another_layout_misses(tmp_path: Path, kind: str) -> None:
    def settings() -> dict[str, Any]:
        return {
            "float32": {},
            "autocast": {"args": {"bf16": True}},
            "weights": {"model": tiny_llama(dtype=torch.bfloat16), "peft_config": lora(2)},
            "reference": {"model": tiny_llama(seed=1), "ref_model": tiny_llama(dtype=torch.bfloat16)},
        }[kind]

    found = []
    for number, layout in enumerate(("packed", "plain", "packed")):
        run(tmp_path / str(number), engine=EngineConfig(layout=layout), **settings())  # type: ignore[arg-type]
        found.append(counted(tmp_path / str(number)))
    assert found == [(12, 0), (0, 12) if kind == "float32" else (12, 0), (0, 12)]


def test_pairs_that_occur_twice_are_computed_once(tmp_path: Path) -> None:
    rows = random_pairs(4)
    twice = Dataset.from_dict(
        {key: list(rows[key]) * 2 for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
    )
    trainer = run(tmp_path, rows=twice)
    assert counted(tmp_path) == (4, 4)
    values = list(trainer.train_dataset["ref_chosen_logps"])
    assert values[:4] == values[4:]
    assert list(trainer.train_dataset["row"]) == list(range(8))


def test_the_stored_values_are_the_models_own(tmp_path: Path) -> None:
    trainer = run(tmp_path, engine=EngineConfig(tokens_per_microbatch=40))
    model = tiny_llama()
    for row in trainer.train_dataset:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1)
            expected = logps.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()
            assert row[f"ref_{side}_logps"] == pytest.approx(float(expected), rel=1e-5)


def test_reference_columns_that_came_with_the_rows_are_not_believed(tmp_path: Path) -> None:
    rows = (
        random_pairs(12)
        .add_column("ref_chosen_logps", [5.0] * 12)
        .add_column("ref_rejected_logps", [5.0] * 12)
    )
    trainer = run(tmp_path, rows=rows)
    assert max(trainer.train_dataset["ref_chosen_logps"]) < 0


def test_a_damaged_store_is_repaired_by_the_next_run(tmp_path: Path) -> None:
    engine = EngineConfig(reference_dir=str(tmp_path / "store"))
    first = run(tmp_path / "a", engine=engine)
    (shard,) = (tmp_path / "store").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    second = run(tmp_path / "b", engine=engine)
    assert counted(tmp_path / "b") == (12, 0)
    assert list(second.train_dataset["ref_chosen_logps"]) == list(first.train_dataset["ref_chosen_logps"])


def test_an_evaluation_set_shares_what_the_training_set_has(tmp_path: Path) -> None:
    run(tmp_path, eval_dataset={"seen": random_pairs(5), "new": random_pairs(3, seed=8)})
    # random_pairs draws column by column: only equal counts give equal rows.
    assert counted(tmp_path)[0] + counted(tmp_path)[1] == 20
    run(tmp_path / "same", eval_dataset=random_pairs(12))
    assert counted(tmp_path / "same") == (0, 24)


def test_weights_that_were_rounded_in_loading_have_a_reference_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_llama(seed=1).save_pretrained(folder)
    fingerprints, first = [], []
    for options in (None, {"dtype": "float32"}, {"dtype": torch.float16}, {"attn_implementation": "eager"}):
        trainer = RiskBetaDPOTrainer(
            str(folder),
            args=arguments(tmp_path / "run", model_init_kwargs=options),
            train_dataset=random_pairs(8),
            processing_class=word_tokenizer(),
        )
        trainer.train()  # The check before the first step finds log-probabilities of other weights.
        fingerprints.append(trainer.policy.fingerprint)
        first.append(trainer.train_dataset["ref_chosen_logps"][0])
    assert len({fingerprints[0], fingerprints[1], fingerprints[3]}) == 1
    assert fingerprints[2] != fingerprints[0]
    assert first[0] == first[1]
    assert 1e-5 < abs(first[0] - first[2]) < 0.1
