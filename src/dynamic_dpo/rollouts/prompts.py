"""Which prompts are sampled: a part of a draw that hangs on seed and content, less what an evaluation will ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.judges.base import conversation_text
from dynamic_dpo.eval.prompts.sets import load_prompts
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.filters import normalised
from dynamic_dpo.rollouts.plan import RolloutPlan

Item = TypeVar("Item")


class DrawnPrompts(NamedTuple):
    """The prompts of a rollout, or of its shard.

    Attributes:
        prompts: In the order of the draw.
        excluded: Ids of the prompts that were passed over because an evaluation asks them.
        report: Counts, see `PromptSet`.
    """

    prompts: list[PromptRecord]
    excluded: list[str]
    report: dict[str, Any]


def draw_prompts(plan: RolloutPlan) -> DrawnPrompts:
    """Draw the prompts that a plan asks for.

    Prompts are compared with those of an evaluation by what a reader sees: case and white space make no difference.

    Raises:
        DataError: If a set cannot be read, or no prompt is left.
    """
    source = plan.prompts
    banned = {_seen(prompt) for load in source.exclude for prompt in load_prompts(**load).prompts}
    most = None if source.limit is None else source.skip + source.limit + len(banned)
    found = load_prompts(**source.load, max_samples=most, report_dir=plan.folder)
    taken, excluded = _part(
        found.prompts, banned, None if source.limit is None else source.skip + source.limit
    )
    taken = taken[source.skip :]
    if not taken:
        raise DataError(
            f"no prompt is left of the {len(found.prompts)} drawn from {source.load['name']!r}: {len(excluded)} are "
            f"excluded by rollout.prompts.exclude, {source.skip} skipped by rollout.prompts.skip"
        )
    return DrawnPrompts(_ours(taken, plan), _ours(excluded, plan), found.report)


def _part(
    prompts: Iterable[PromptRecord], banned: set[str], limit: int | None
) -> tuple[list[PromptRecord], list[str]]:
    """Return the first prompts that are not banned, and the ids of those that were met on the way."""
    taken: list[PromptRecord] = []
    excluded: list[str] = []
    for prompt in prompts:
        if len(taken) == limit:
            break
        if _seen(prompt) in banned:
            excluded.append(prompt.id)
        else:
            taken.append(prompt)
    return taken, excluded


def _ours(items: list[Item], plan: RolloutPlan) -> list[Item]:
    return [item for place, item in enumerate(items) if plan.shard is None or plan.shard.holds(place)]


def _seen(prompt: PromptRecord) -> str:
    return normalised(conversation_text(prompt.messages))
