"""The pairs that a round trains on: its own, and where that is asked for some of earlier rounds'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynamic_dpo.data.sources import PAIRS_FILE
from dynamic_dpo.loops.plan import LoopPlan
from dynamic_dpo.utils.files import replacing
from dynamic_dpo.utils.hashing import content_hash


def pairs_of_round(plan: LoopPlan, number: int) -> Path:
    """Return the folder or file of pairs that a round trains on, made where it is a mixture.

    Of all pairs that earlier rounds have made, ``earlier_pairs`` times the round's own are drawn, all of them where
    there are fewer, by a hash of the training's seed, the round and the pair: what is drawn hangs on nothing else.

    Args:
        plan: The loop.
        number: The round, from 1.
    """
    own = plan.folder_of(number) / "rollout"
    if number == 1 or not plan.settings.earlier_pairs:
        return own
    rows = _rows(own)
    seed = plan.training["dataset"]["seed"]
    earlier = [row for before in range(1, number) for row in _rows(plan.folder_of(before) / "rollout")]
    drawn = sorted(dict.fromkeys(earlier), key=lambda row: content_hash([seed, number, _content(row)]))
    count = round(plan.settings.earlier_pairs * len(rows))
    path = plan.folder_of(number) / "pairs.jsonl"
    with replacing(path) as file:
        file.writelines(f"{row}\n" for row in [*rows, *drawn[:count]])
    return path


def _content(row: str) -> list[Any]:
    # What a row says of its making, as the folder of its model, is not its content.
    read = json.loads(row)
    return [read[name] for name in ("prompt_messages", "chosen", "rejected")]


def num_pairs(pairs: Path) -> int:
    """Return how many pairs a folder or file that `pairs_of_round` gave holds."""
    return len(_rows(pairs))


def sha256_of_pairs(pairs: Path) -> str:
    """Return the hash of the rows of a folder or file of pairs."""
    return content_hash(_rows(pairs), length=64)


def _rows(pairs: Path) -> list[str]:
    path = pairs / PAIRS_FILE if pairs.is_dir() else pairs
    # Not splitlines: a text may hold other ends of lines.
    return [row for row in path.read_text(encoding="utf-8").split("\n") if row]
