"""What sharded runs leave behind; usage: ``distributed_saving.py FOLDER``, on ranks with FSDP2.

Each run leaves its final model, one saved by `save_model` alone, and ``weights.pt``, put together from its shards.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.saved import save_and_check
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def tied_llama() -> LlamaForCausalLM:
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def trained(folder: Path, model: Any, peft_config: Any = None, **settings: Any) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model=model,
        args=training_arguments(folder, max_steps=2, save_strategy="steps", save_steps=2, **settings),
        train_dataset=random_pairs(16),
        processing_class=word_tokenizer(template="{{ messages }}"),
        peft_config=peft_config,
        method=DPO(),
    )
    trainer.train()
    return trainer


def leave(trainer: PreferenceTrainer, folder: Path) -> None:
    save_and_check(trainer, folder / "final")
    trainer.save_model(str(folder / "by_hand"))
    state = trainer.model.state_dict()
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()
    }
    if trainer.is_world_process_zero():
        torch.save(whole, folder / "weights.pt")


def refusal(trainer: PreferenceTrainer, folder: Path, spoil: Callable[[dict[str, Any]], None]) -> str:
    """Return the error with which saving ends on this rank if ``spoil`` has its way with the weights."""
    save = trainer._save

    def spoilt(output_dir: str, state_dict: dict[str, Any]) -> None:
        spoil(state_dict)
        save(output_dir, state_dict=state_dict)

    trainer._save = spoilt
    try:
        save_and_check(trainer, folder)
    except CheckpointError as error:
        return str(error)
    finally:
        trainer._save = save
    return "saved"


def change(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1


def fill_the_disk(weights: dict[str, Any]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(folder: Path) -> None:
    leave(trained(folder / "full", tiny_llama()), folder / "full")
    leave(trained(folder / "tied", tied_llama()), folder / "tied")
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    leave(trained(folder / "lora", tiny_llama(), adapter), folder / "lora")
    leave(trained(folder / "alone", tiny_llama(), save_only_model=True), folder / "alone")
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    trainer = trained(folder / "whole", tiny_llama())
    leave(trainer, folder / "whole")
    errors = {
        "changed": refusal(trainer, folder / "changed", change),
        "lost": refusal(trainer, folder / "lost", lambda weights: weights.pop("lm_head.weight")),
        "full disk": refusal(trainer, folder / "full_disk", fill_the_disk),
    }
    (folder / f"result_{trainer.args.process_index}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
    end_process(0)
