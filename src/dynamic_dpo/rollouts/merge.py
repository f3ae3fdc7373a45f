"""Joining shards: the folders of 1/n to n/n become one, as if the prompts had never been parted.

What was written, scored and judged is copied, and the stage pair is run on it. Nothing is asked again, and nothing is
lost: a shard that is missing, given twice, unfinished, or made with other settings is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.judging.ledger import attempts_path
from dynamic_dpo.rollouts.folder import LabelNote, RolloutFolder
from dynamic_dpo.rollouts.plan import RolloutPlan, Shard
from dynamic_dpo.rollouts.prompts import DrawnPrompts
from dynamic_dpo.rollouts.stages import pair
from dynamic_dpo.rollouts.summary import RolloutSummary
from dynamic_dpo.utils.files import replacing
from dynamic_dpo.utils.json_lines import iter_json_lines, json_line

Item = TypeVar("Item")


def merge_shards(plans: Sequence[RolloutPlan], folder: Path) -> RolloutSummary:
    """Join the shards of one rollout.

    Args:
        plans: Of all shards, in any order; they differ in folder and shard alone.
        folder: The folder of the whole; made if missing.

    Returns:
        What the whole has come to.

    Raises:
        ConfigError: If a shard is missing or given twice, or was made with other settings than the others.
        DataError: If a shard is unfinished or a file damaged.
    """
    shards = _in_order(plans)
    whole = RolloutFolder(replace(shards[0].plan, folder=folder, shard=None))
    for shard in shards:
        if _asked(shard) != _asked(shards[0]):
            raise ConfigError(
                f"{shard.plan.folder} was made with other prompts, samples or models than {shards[0].plan.folder}"
            )
    whole.put_prompts(_prompts(shards))
    _copy_rows(shards, lambda found: found.outputs_path, whole.outputs_path)
    _copy_rows(shards, lambda found: found.scores_path, whole.scores_path)
    _copy_rows(shards, lambda found: found.judgements_path, whole.judgements_path)
    _copy_rows(
        shards, lambda found: attempts_path(found.judgements_path), attempts_path(whole.judgements_path)
    )
    whole.put_labels(_labels(shards))
    return pair(whole)


def _in_order(plans: Sequence[RolloutPlan]) -> list[RolloutFolder]:
    given = [(plan.shard or Shard(1, 1), plan) for plan in plans]
    total = given[0][0].total
    found = sorted(shard.number for shard, _ in given)
    if any(shard.total != total for shard, _ in given) or found != list(range(1, total + 1)):
        names = ", ".join(f"{shard} in {plan.folder}" for shard, plan in given)
        raise ConfigError(f"the shards 1/{total} to {total}/{total} are needed, each once; given are {names}")
    return [RolloutFolder(plan) for _, plan in sorted(given, key=lambda item: item[0].number)]


def _asked(shard: RolloutFolder) -> tuple[object, ...]:
    fingerprints = {name: written.fingerprint for name, written in shard.written.items()}
    drawing = {**shard.plan.drawing(), "shard": None}
    return drawing, shard.plan.generation.num_samples, fingerprints


def _prompts(shards: Sequence[RolloutFolder]) -> DrawnPrompts:
    """Deal the prompts of the shards back into one draw."""
    prompts = dealt_back([shard.prompts() for shard in shards])
    notes = [shard.prompts_note() for shard in shards]
    if any(note["report"]["sources"] != notes[0]["report"]["sources"] for note in notes):
        raise DataError("the shards were drawn from different prompts: draw them again from the same data")
    return DrawnPrompts(prompts, dealt_back([note["excluded"] for note in notes]), notes[0]["report"])


def dealt_back(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Return what was dealt out to several parts in turn, in its order.

    >>> dealt_back([["a", "d"], ["b"], ["c"]])
    ['a', 'b', 'c', 'd']
    """
    turns = zip_longest(*parts)
    return [item for turn in turns for item in turn if item is not None]


def _copy_rows(
    shards: Sequence[RolloutFolder], path_of: Callable[[RolloutFolder], Path], target: Path
) -> None:
    paths = [path for path in map(path_of, shards) if path.is_file()]
    if paths:
        with replacing(target) as file:
            file.writelines(json_line(row) for path in paths for row, _, _ in iter_json_lines(path))


def _labels(shards: Sequence[RolloutFolder]) -> LabelNote:
    notes = [shard.labels_note() for shard in shards]
    for shard, note in zip(shards, notes, strict=True):
        if note.fingerprints != notes[0].fingerprints:
            raise ConfigError(
                f"{shard.plan.folder} was labelled by another scorer or judge than {shards[0].plan.folder}: run its "
                "stage label again"
            )
    stopped = [note.stopped for note in notes if note.stopped is not None]
    return LabelNote(notes[0].fingerprints, stopped[0] if stopped else None)
