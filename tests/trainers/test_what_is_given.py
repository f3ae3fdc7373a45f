"""What a trainer is given: refused at once where it cannot be used, and never taken for something else."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers import BitsAndBytesConfig

from dynamic_dpo.errors import ConfigError, DataError, ModelError
from dynamic_dpo.trainers import RiskBetaDPOTrainer
from helpers_trl import arguments
from tiny import random_pairs, tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def trainer_of(folder: Path, model: Any = None, **given: Any) -> RiskBetaDPOTrainer:
    settings = {name: given.pop(name) for name in ("model_init_kwargs", "max_length") if name in given}
    return RiskBetaDPOTrainer(
        model=tiny_llama(seed=1) if model is None else model,
        args=arguments(folder, **settings),
        **{"train_dataset": random_pairs(8), "processing_class": word_tokenizer(), **given},
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train_dataset": DatasetDict({"train": random_pairs(4), "test": random_pairs(4)})},
            "train_dataset is a DatasetDict of 'train', 'test': give one of them, or join them",
        ),
        ({"train_dataset": {}}, "train_dataset is a dict of nothing"),
        ({"processing_class": "a name"}, "must be a tokenizer of transformers, got str"),
        (
            {"processing_class": SimpleNamespace(tokenizer=word_tokenizer())},
            "as text alone: give its tokenizer",
        ),
        ({"data_collator": list}, "give a data set with the columns prompt_ids, chosen_ids and rejected_ids"),
        (
            {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)},
            "this one is loaded already: load it with that configuration",
        ),
        (
            {
                "model": "somewhere",
                "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
                "model_init_kwargs": {"quantization_config": {"load_in_8bit": True}},
            },
            "stands in model_init_kwargs, too: leave one of them out",
        ),
        ({"quarantine_max_share": 5}, r"quarantine_max_share must lie in \[0, 1\], got 5"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_give(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(tmp_path, **given)


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset", "one of eval_dataset"])
def test_a_stream_is_refused_with_what_to_do(where: str, tmp_path: Path) -> None:
    stream: Any = random_pairs(8).to_iterable_dataset()
    given = {"train_dataset": stream} if where == "train_dataset" else {"eval_dataset": stream}
    if where.startswith("one"):
        given = {"eval_dataset": {"a": random_pairs(4), "b": stream}}
    with pytest.raises(DataError, match=r"streaming=True, or take a part.*from_list\(list\(stream\.take"):
        trainer_of(tmp_path, **given)
    # The sentence holds.
    trainer_of(tmp_path / "taken", train_dataset=Dataset.from_list(list(stream.take(4))))


def test_the_share_of_unusable_rows_is_the_users_to_raise(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {"prompt": ["w1", "w1 w2 w3 w4 w5 w6 w7"], "chosen": [" w8", " w9"], "rejected": [" w9", " w8"]}
    )
    with pytest.raises(DataError, match="raise quarantine_max_share"):
        trainer_of(tmp_path, train_dataset=rows, max_length=6)
    trainer = trainer_of(tmp_path, train_dataset=rows, max_length=6, quarantine_max_share=0.5)
    assert len(trainer.train_dataset) == 1


def test_columns_of_tokenised_pairs_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = random_pairs(8)
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        trainer_of(tmp_path, train_dataset=rows)
    assert "not read" not in caplog.text
    more = rows.add_column("ref_chosen_logps", [-1.0] * 8).add_column("weight", [1.0] * 8)
    trainer = trainer_of(tmp_path, train_dataset=more)
    assert "not read of pairs that are tokenised already: ref_chosen_logps, weight." in caplog.text
    trainer.ensure_reference()
    assert max(trainer.train_dataset["ref_chosen_logps"]) < -1.0


def test_a_set_whose_pairs_are_known_can_be_evaluated_after_training(tmp_path: Path) -> None:
    held_out, new = random_pairs(6, seed=5), random_pairs(6, seed=6)
    trainer = trainer_of(tmp_path)
    before = trainer.evaluate(held_out)
    trainer.train()
    after = trainer.evaluate({"half": held_out.select(range(3)), "whole": held_out})
    assert after["eval_whole_loss"] != before["eval_loss"]
    assert after["eval_half_loss"] != after["eval_whole_loss"]
    with pytest.raises(ModelError, match=r"6 of 6 pairs without reference .* give it to the trainer as eval"):
        trainer.evaluate(new)
