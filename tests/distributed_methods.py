"""Two steps of each method that looks at all ranks' pairs, for `test_distributed_methods.py`.

Usage: ``distributed_methods.py FOLDER DEVICE_BATCH``; each rank leaves the states and first weights it ended with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dynamic_dpo.methods import (
    AOT,
    SFT,
    AlphaDPO,
    AlphaDPOConfig,
    AOTUnpaired,
    BetaDPO,
    BetaDPOConfig,
    DrDPO,
    EpsilonDPO,
    EpsilonDPOConfig,
)
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import random_pairs, tiny_gpt2, training_arguments, word_tokenizer


def main(folder: Path, device_batch: int) -> None:
    methods = [
        BetaDPO(BetaDPOConfig(keep_share=0.5), scope="step"),
        EpsilonDPO(EpsilonDPOConfig(epsilon=0.1)),
        AlphaDPO(AlphaDPOConfig(alpha=0.3), scope="step"),
        SFT(scope="step"),
        AOT(scope="step"),
        AOTUnpaired(scope="step"),
        DrDPO(scope="step"),
    ]
    results = {}
    for method in methods:
        # A rank's own random state must decide nothing.
        torch.manual_seed(device_batch)
        trainer = PreferenceTrainer(
            model=tiny_gpt2().to(torch.float64),
            # Not the policy's own start: its margins would be rounding, which alpha-DPO divides by its own spread.
            ref_model=tiny_gpt2(seed=9).to(torch.float64),
            args=training_arguments(
                folder / method.name,
                per_device_train_batch_size=device_batch,
                max_steps=3,
                optim="sgd",
                learning_rate=0.1,
            ),
            train_dataset=random_pairs(24),
            processing_class=word_tokenizer(),
            method=method,
        )
        trainer.train()
        norms = [float(value.double().norm()) for value in trainer.model.state_dict().values()]
        results[method.name] = {"state": method.state_dict(), "norms": norms}
        rank = trainer.args.process_index
    (folder / f"result_{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]), int(sys.argv[2]))
    end_process(0)
