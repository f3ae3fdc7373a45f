"""One short training run on one rank or several, for `test_distributed.py`; each rank leaves what it has.

Usage: ``distributed_run.py FOLDER SCOPE DEVICE_BATCH``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import random_pairs, tiny_gpt2, training_arguments, word_tokenizer


def main(folder: Path, scope: str, device_batch: int) -> None:
    args = training_arguments(
        folder / "run",
        per_device_train_batch_size=device_batch,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=3,
        # Not AdamW: it divides the gradient of the keys' bias, which is rounding and nothing else, by its own size.
        optim="sgd",
        learning_rate=0.1,
    )
    method = Risk(
        RiskConfig(scope=scope, warmup_steps=2, alpha=0.3, delta=0.25),  # type: ignore[arg-type]
        pairs_per_update=8,
    )
    trainer = PreferenceTrainer(
        model=tiny_gpt2().to(torch.float64),
        args=args,
        train_dataset=random_pairs(24),
        eval_dataset=random_pairs(7, seed=3),
        processing_class=word_tokenizer(),
        method=method,
        margin_log=MarginLogConfig(save_per_rank=True),
    )
    trainer.train()
    metrics = trainer.evaluate()
    rank = trainer.args.process_index
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    torch.save(weights, folder / f"weights_{rank}.pt")
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "state": method.state_dict(),
        "ranks": trainer.args.world_size,
        "updates": trainer.num_updates,
        "pairs_seen": trainer.num_pairs_seen,
        "losses": [entry["loss"] for entry in logs],
        "margins": [entry["margins/mean"] for entry in logs],
        "eval": {key: value for key, value in metrics.items() if "margins" in key or key == "eval_loss"},
    }
    (folder / f"result_{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    end_process(0)
