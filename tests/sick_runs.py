"""Short trainings of a tiny model that are healthy, or have one fault each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods.dpo import DPO, DPOMethodConfig
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.runs.samples import SamplingConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.watch.sampling import Sampling
from tiny import VOCAB, tiny_llama, training_arguments, word_tokenizer

STEPS, PAIRS_PER_STEP, NUM_HELD_OUT = 300, 8, 64
LEARNING_RATE = 5e-4
SAMPLES = Sampling(settings=SamplingConfig(every=10, max_new_tokens=32))
LOW, HIGH = range(4, VOCAB // 2), range(VOCAB // 2, VOCAB)


def pairs(kind: str, count: int, seed: int) -> Dataset:
    """Pairs whose chosen answers have more words of the vocabulary's first half; ``kind`` names what is wrong."""
    draw = random.Random(seed)

    def words(share_low: float) -> list[int]:
        return [draw.choice(LOW if draw.random() < share_low else HIGH) for _ in range(draw.randint(6, 12))]

    rows: list[tuple[list[int], list[int], list[int]]] = []
    for _ in range(count):
        prompt, chosen, rejected = words(0.5), words(0.7), words(0.3)
        if kind == "shuffled":
            chosen, rejected = words(0.5), words(0.5)
        elif kind == "displaced":
            # Both answers hold the same words, of which the rejected one has one more.
            rejected = [*chosen, draw.choice(HIGH)]
        elif kind == "noise":
            chosen, rejected = [5] * len(chosen), [draw.randrange(4, VOCAB) for _ in range(20)]
        elif kind == "same":
            rejected = list(chosen)
        # A template that never stops has written the chosen answers.
        rows.append((prompt, chosen if kind == "endless" else [*chosen, 2], [*rejected, 2]))
    prompts, chosens, rejecteds = zip(*rows, strict=True)
    return Dataset.from_dict(
        {
            "prompt_ids": list(prompts),
            "chosen_ids": list(chosens),
            "rejected_ids": list(rejecteds),
            "row": list(range(count)),
        }
    )


def stopping_llama(seed: int) -> Any:
    """Return a tiny model that was taught to write such answers and to end them: most of its samples stop."""
    model, draw = tiny_llama(seed=seed), random.Random(seed)
    rows = [[*row["prompt_ids"], *row["chosen_ids"]] for row in pairs("healthy", 256, seed + 2000)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        batch = draw.sample(rows, 32)
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        mask = ids != 0
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


class Damage(TrainerCallback):  # type: ignore[misc]
    """Spoils the output head's weights before a step, as a fault of a machine might."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.lm_head.weight.mul_(30.0)


def make(
    folder: Path,
    *,
    kind: str = "healthy",
    seed: int = 0,
    steps: int = STEPS,
    rate: float = LEARNING_RATE,
    epochs: float = 1,
    alarms: AlarmConfig | None = None,
    beta: float = 0.1,
    damaged_at: int | None = None,
    stops: bool = False,
    sampling: Sampling | None = None,
    **arguments: Any,
) -> PreferenceTrainer:
    """Return the trainer of the first ``steps`` of a run of `STEPS`; ``stops``: of a model that ends its samples."""
    settings: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": PAIRS_PER_STEP,
        "per_device_eval_batch_size": NUM_HELD_OUT,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "seed": seed,
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=stopping_llama(seed) if stops else tiny_llama(seed=seed),
        args=training_arguments(folder, **(settings | arguments)),
        train_dataset=pairs(kind, int(STEPS * PAIRS_PER_STEP / epochs), seed),
        eval_dataset=pairs("healthy" if kind == "shuffled" else kind, NUM_HELD_OUT, seed + 1000),
        processing_class=word_tokenizer(),
        method=DPO(DPOMethodConfig(beta=beta)),
        engine=EngineConfig(self_check=False),
        alarms=alarms,
        sampling=sampling,
        callbacks=[] if damaged_at is None else [Damage(damaged_at)],
    )
