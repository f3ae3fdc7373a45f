"""A run that overfits on purpose: few pairs, many epochs, and held-out pairs of the same law that get worse.

Chosen answers are mostly of the first half of the words, rejected ones of the second.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods import DPO, DPOMethodConfig
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import VOCAB, tiny_llama, training_arguments, word_tokenizer

EVALUATED_EVERY = 2


def lawful_pairs(count: int, *, seed: int) -> Dataset:
    """Tokenised pairs that show a preference which can be learned, and much that cannot."""
    draw = random.Random(seed)

    def words(share: float) -> list[int]:
        halves = [(4, VOCAB // 2), (VOCAB // 2, VOCAB)]
        return [draw.randrange(*halves[draw.random() >= share]) for _ in range(6)] + [2]

    return Dataset.from_dict(
        {
            "prompt_ids": [[draw.randrange(4, VOCAB) for _ in range(4)] for _ in range(count)],
            "chosen_ids": [words(0.9) for _ in range(count)],
            "rejected_ids": [words(0.1) for _ in range(count)],
            "row": list(range(count)),
        }
    )


def overfitting_run(folder: Path, keep_best: KeepBest | None = None, **settings: Any) -> PreferenceTrainer:
    """Return the trainer of 20 epochs of 16 pairs, evaluated on 32 others after every second step.

    Args:
        folder: Of the run, and beside it of the reference's log-probabilities.
        keep_best: What the run keeps.
        **settings: Training arguments; those of the trainer are ``model``, ``callbacks``, ``peft_config``,
            ``compute_metrics``, ``eval_dataset``, ``method`` and ``resume_changed``.
    """
    own = ("callbacks", "peft_config", "compute_metrics", "resume_changed", "ref_model")
    trainer = {name: settings.pop(name) for name in own if name in settings}
    model = settings.pop("model", None)
    held_out = settings.pop("eval_dataset", lawful_pairs(32, seed=1))
    method = settings.pop("method", None)
    arguments = {
        "learning_rate": 1e-3,
        "num_train_epochs": 20,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": EVALUATED_EVERY,
        "logging_steps": 3,
        **settings,
    }
    return PreferenceTrainer(
        model=tiny_llama() if model is None else model,
        args=training_arguments(folder, **arguments),
        train_dataset=lawful_pairs(16, seed=0),
        eval_dataset=held_out,
        processing_class=word_tokenizer(),
        method=method or DPO(DPOMethodConfig(beta=2.0)),
        engine=EngineConfig(reference_dir=str(folder.parent / "reference"), self_check=False),
        keep_best=keep_best,
        **trainer,
    )


def evaluations(trainer: PreferenceTrainer, name: str = "eval_loss") -> list[float]:
    """Return what the run's evaluations have logged, in their order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
