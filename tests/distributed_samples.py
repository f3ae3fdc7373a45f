"""One training with samples and one without, on one rank or several, for `test_sampling.py`; each rank leaves both.

Usage: ``distributed_samples.py FOLDER``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.models.sources import weights_fingerprint
from dynamic_dpo.runs.samples import SamplingConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.watch.sampling import Sampling
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def one(folder: Path, sampling: Sampling | None) -> dict[str, Any]:
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(folder, max_steps=5, eval_strategy="steps", eval_steps=2),
        train_dataset=random_pairs(48),
        eval_dataset=random_pairs(7, seed=3),
        processing_class=word_tokenizer(),
        method=Risk(RiskConfig(warmup_steps=1, alpha=0.3, delta=0.25), pairs_per_update=8),
        sampling=sampling,
    )
    trainer.train()
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "betas": [entry["beta"] for entry in history if "beta" in entry],
        "held_out": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "weights": weights_fingerprint(trainer.model),
        "samples": [
            {name: value for name, value in entry.items() if name.startswith("samples/") or name == "step"}
            for entry in history
            if "samples/length" in entry
        ],
    }


def main(folder: Path) -> None:
    sampling = Sampling(settings=SamplingConfig(every=1, num_prompts=2, max_new_tokens=6))
    result = {"with": one(folder / "with", sampling), "without": one(folder / "without", None)}
    (folder / f"result_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
    sys.exit(end_process(0))
