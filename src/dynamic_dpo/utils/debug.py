"""A dump of what the model really sees: ids, masks, labels and decoded text of a few pairs.

Reads from the trainer only its data set, its tokenizer and its layout; changes nothing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from dynamic_dpo.utils.files import write_text

IGNORE_INDEX = -100
FILE_NAME = "debug_samples.jsonl"


def log_dpo_debug_samples(
    trainer: Any,
    *,
    output_dir: str | Path,
    first_n: int = 3,
    random_n: int = 0,
    raw_dataset: Any = None,
    console_n: int = 0,
) -> Path:
    """Write ``debug_samples.jsonl``: for each pair both sequences as the model sees them.

    Args:
        trainer: A preference trainer; its training set and tokenizer are read.
        output_dir: Folder of the file; made if absent.
        first_n: How many pairs from the start of the set.
        random_n: How many more, drawn with the trainer's seed.
        raw_dataset: The rows before tokenisation, indexed by a pair's ``row``; added where given.
        console_n: How many pairs are also printed.

    Returns:
        The file written.

    Raises:
        ValueError: If a count is negative.
    """
    if min(first_n, random_n, console_n) < 0:
        raise ValueError(f"counts must be at least 0, got {first_n}, {random_n}, {console_n}")
    dataset, tokenizer = trainer.train_dataset, trainer.processing_class
    first = range(min(first_n, len(dataset)))
    rest = range(len(first), len(dataset))
    drawn = random.Random(trainer.args.seed).sample(rest, min(random_n, len(rest)))
    records = []
    for position in [*first, *sorted(drawn)]:
        record = describe_pair(dataset[position], tokenizer, layout=trainer.policy.scorer.layout)
        if raw_dataset is not None and record["row"] < len(raw_dataset):
            record["raw"] = raw_dataset[record["row"]]
        records.append(record)
    lines = [json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records]
    path = write_text(Path(output_dir) / FILE_NAME, "".join(lines))
    for record in records[:console_n]:
        print(f"row {record['row']} ({record['layout']} layout)")
        for side in ("chosen", "rejected"):
            print(f"  {side} context:    {record[side]['context_text']!r}")
            print(f"  {side} completion: {record[side]['completion_text']!r}")
    return path


def describe_pair(example: dict[str, Any], tokenizer: Any, *, layout: str) -> dict[str, Any]:
    """Return one pair as the model sees it, each side with ids, mask, labels and decoded text.

    Labels are -100 on the prompt and on what others say within an answer: nothing is learned there.
    """
    prompt = list(example["prompt_ids"])

    def side(name: str) -> dict[str, Any]:
        completion = list(example[f"{name}_ids"])
        mask = example.get(f"{name}_mask") or [1] * len(completion)
        labels = [token if counts else IGNORE_INDEX for token, counts in zip(completion, mask, strict=True)]
        ids = [*prompt, *completion]
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [IGNORE_INDEX] * len(prompt) + labels,
            "context_text": tokenizer.decode(prompt),
            "completion_text": tokenizer.decode(completion),
            "num_completion_tokens": len(completion),
            "num_scored_tokens": sum(mask),
        }

    return {
        "row": int(example["row"]),
        "layout": layout,
        "num_prompt_tokens": len(prompt),
        "chosen": side("chosen"),
        "rejected": side("rejected"),
    }
