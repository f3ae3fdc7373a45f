"""One family: its layout, its losses and gradients beside those of each sequence alone, and a training."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.methods import DPO
from dynamic_dpo.models.dropout import ConfiguredDropout, switch_off_dropout
from dynamic_dpo.trainers import PreferenceTrainer
from families.configurations import tiny_model
from tiny import training_arguments, word_tokenizer

BETA = 0.1
# Prompt, chosen, rejected: longer than the windows, and shorter; answers of one token too.
SIZES = ((12, 14, 9), (3, 4, 2), (20, 5, 17), (1, 1, 6), (9, 11, 12), (6, 1, 1))


class Outcome(NamedTuple):
    """What came of a family.

    Attributes:
        layout: The layout that the engine chose.
        loss_distance: Largest distance of a pair's loss from that of its sequences scored alone.
        gradient_distance: Distance of the gradient from theirs, as a share of its size.
        why_slow: What is slow about it, and why; empty for packed rows with the head by itself.
        fault: What ended the try, or empty.
    """

    layout: str = ""
    loss_distance: float = math.nan
    gradient_distance: float = math.nan
    why_slow: str = ""
    fault: str = ""


def some_pairs() -> PairBatch:
    """Return pairs of ordinary tokens."""
    draw = random.Random(7)
    prompts, chosen, rejected = zip(
        *([[draw.randrange(4, 90) for _ in range(count)] for count in sizes] for sizes in SIZES), strict=True
    )
    return PairBatch(prompts, chosen, rejected, range(len(SIZES)))


def _losses(logps: Tensor, pairs: int) -> Tensor:
    """Return DPO's losses against a reference that was drawn, from log-probabilities of shape [B, 2]."""
    margins = 5 * torch.randn(pairs, generator=torch.Generator().manual_seed(2))
    return -logsigmoid(BETA * (logps[:, 0] - logps[:, 1] - margins))


def _gradient(model: Any) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    ).double()


def losses_alone(model: Any, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Return losses and gradient with each sequence scored by itself through the model's own logits."""
    logps = []
    for prompt, completions in zip(pairs.prompts, pairs.completions, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            logps.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())
    losses = _losses(torch.stack(logps).view(-1, 2), len(pairs))
    losses.mean().backward()
    return losses.detach(), _gradient(model)


def losses_of_engine(model: Any, scorer: PairScorer, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Return the same in the engine's layout, cut into micro-batches."""
    model.zero_grad()
    losses = torch.zeros(len(pairs))
    for part in scorer.plan(pairs):
        scored = scorer.score(model, pairs.select(part))
        logps = torch.zeros(len(pairs), 2).index_put(
            (torch.tensor(part),), torch.stack([scored.chosen, scored.rejected], 1)
        )
        of_part = _losses(logps, len(pairs))[part]
        (of_part.sum() / len(pairs)).backward()
        losses[part] = of_part.detach()
    return losses, _gradient(model)


def train(model: Any, pairs: PairBatch, folder: Path) -> dict[str, float]:
    """Train two steps by the project's own trainer; return the last entry of its log that has a loss."""
    rows = {
        "prompt_ids": pairs.prompts,
        "chosen_ids": pairs.chosen,
        "rejected_ids": pairs.rejected,
        "row": range(len(pairs)),
    }
    trainer = PreferenceTrainer(
        model=model,
        args=training_arguments(
            folder, max_steps=2, num_train_epochs=2, per_device_train_batch_size=len(pairs)
        ),
        train_dataset=Dataset.from_dict({name: list(values) for name, values in rows.items()}),
        processing_class=word_tokenizer(),
        method=DPO(),
        engine=EngineConfig(reference_dir=str(folder / "reference")),
    )
    trainer.train()
    entries: list[dict[str, float]] = [entry for entry in trainer.state.log_history if "loss" in entry]
    return entries[-1]


def why_slow(scorer: PairScorer) -> str:
    """Return in words what the engine cannot do for a model."""
    if not scorer.separate_head:
        return f"two rows a pair, all logits kept: {scorer.reason}"
    if not scorer.shared:
        return f"two rows a pair: {scorer.reason}"
    words = [] if scorer.packed else [f"padded rows: {scorer.reason_against_packing}"]
    if scorer.longest is not None:
        words.append("two rows a pair for sequences beyond its window")
    return "; ".join(words)


def check_family(name: str, folder: Path) -> Outcome:
    """Try one family.

    Args:
        name: Its configuration's ``model_type``.
        folder: An empty folder for the run.

    Returns:
        What came of it; nothing is raised but what ends the process.
    """
    pairs = some_pairs()
    model = tiny_model(name)
    switch_off_dropout(model)
    with ConfiguredDropout(model).off():
        expected, their_gradient = losses_alone(copy.deepcopy(model).eval(), pairs)
        scorer = PairScorer(model, EngineConfig(tokens_per_microbatch=64))
        losses, gradient = losses_of_engine(model.train(), scorer, pairs)
    outcome = Outcome(
        scorer.layout,
        float((losses - expected).abs().max()),
        float((gradient - their_gradient).norm() / their_gradient.norm()),
        why_slow(scorer),
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    entry = train(model, pairs, folder)
    moved = any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    if not (math.isfinite(entry["loss"]) and moved):
        return outcome._replace(fault=f"training gave a loss of {entry['loss']}, weights moved: {moved}")
    return outcome
