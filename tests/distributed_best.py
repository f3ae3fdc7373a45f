"""Runs that keep their best weights, killed and resumed, on one rank or two, for `test_best_weights.py`.

Usage: ``distributed_best.py FOLDER``; each rank leaves what it has.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process_group import end_process, process_group
from overfitting import evaluations, overfitting_run
from sharded_training import whole_weights


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Raises in the evaluation of a step, on every rank."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def build(folder: Path, ranks: int, kind: str, *callbacks: Any) -> PreferenceTrainer:
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter = {"peft_config": lora} if kind == "lora" else {}
    torch.manual_seed(0)
    return overfitting_run(
        folder,
        KeepBest(patience=12),
        callbacks=[*callbacks],
        per_device_train_batch_size=4 // ranks,
        save_strategy="steps",
        save_steps=3,
        num_train_epochs=10,
        **adapter,
    )


def digest(trainer: PreferenceTrainer) -> str:
    """Return a hash of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(whole_weights(trainer.model).items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def main(folder: Path) -> None:
    result: dict[str, Any] = {}
    for kind in ("full", "lora"):
        probe = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        trainer = build(folder / kind, probe, kind)
        trainer.train()
        best = trainer.best_weights.best if trainer.best_weights else None
        assert best is not None
        found = {
            "best": best.state_dict(),
            "step": trainer.state.global_step,
            "losses": evaluations(trainer),
            "kept": trainer.evaluate()["eval_loss"],
            "weights": digest(trainer),
        }
        try:
            build(folder / f"{kind}_killed", probe, kind, StopAt(int(best.step or 0))).train()
        except InterruptedError:
            resumed = build(folder / f"{kind}_killed", probe, kind)
            resumed.train(resume_from_checkpoint=resumed.find_checkpoint())
            kept = resumed.best_weights.best.state_dict() if resumed.best_weights else {}
            found["resumed"] = {
                "best": kept,
                "weights": digest(resumed),
                "step": resumed.state.global_step,
            }
        result[kind] = found
        result["ranks"] = trainer.args.world_size
        result["sharded"] = type(next(trainer.model.parameters())).__name__ == "DTensor"
    (folder / f"result_{trainer.args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
    end_process(0)
