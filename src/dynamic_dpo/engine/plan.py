"""How pairs, or prompts with their completions, are cut into micro-batches: by a token budget, longest together.

The cut is memory, not mathematics: losses, gradients and controller state do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamic_dpo.errors import ConfigError


def plan_microbatches(
    lengths: Sequence[int],
    tokens_per_microbatch: int,
    *,
    rows_per_prompt: int = 1,
    at_least: int = 1,
    padded: bool = True,
) -> list[list[int]]:
    """Cut pairs into micro-batches of at most ``tokens_per_microbatch`` tokens, padding included.

    Pairs are sorted by length, longest first, so that a step that cannot fit fails at once and rows of one
    micro-batch need little padding. A pair longer than the budget is a micro-batch of its own. Without padding
    as few micro-batches as first fit finds, or fewer, are filled evenly.

    Args:
        lengths: Tokens of the longest row of each pair, or of each prompt with its completions.
        tokens_per_microbatch: Token budget, padding included, at least 1.
        rows_per_prompt: Rows that it takes in the layout: 1, or one for each completion.
        at_least: Micro-batches to make at least, where ranks must agree on a number; at most one a pair.
        padded: Whether rows of a micro-batch are padded to the longest; ``False`` where pairs are packed.

    Returns:
        Micro-batches as lists of indices into ``lengths``; every index stands in exactly one.

    Raises:
        ConfigError: If the budget is below 1.

    Example:
        >>> plan_microbatches([3, 9, 4, 8], tokens_per_microbatch=18)
        [[1, 3], [2, 0]]
        >>> plan_microbatches([3, 9, 4, 8], tokens_per_microbatch=18, at_least=3)
        [[1], [3], [2, 0]]
        >>> plan_microbatches([3, 9, 4, 8], tokens_per_microbatch=13, padded=False)
        [[1, 0], [3, 2]]
    """
    if tokens_per_microbatch < 1:
        raise ConfigError(f"tokens_per_microbatch must be at least 1, got {tokens_per_microbatch}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan = (
        _padded_plan(order, [rows_per_prompt * length for length in lengths], tokens_per_microbatch)
        if padded
        else _packed_plan(order, lengths, tokens_per_microbatch)
    )
    return split_largest(plan, at_least)


def split_largest(plan: Sequence[list[int]], at_least: int) -> list[list[int]]:
    """Halve the micro-batch of the most pairs until there are ``at_least``, or each has one pair.

    Example:
        >>> split_largest([[4, 2, 7], [5]], 3)
        [[4, 2], [7], [5]]
    """
    plan = list(plan)
    while len(plan) < min(at_least, sum(map(len, plan))):
        largest = max(range(len(plan)), key=lambda i: len(plan[i]))
        half = (len(plan[largest]) + 1) // 2
        plan[largest : largest + 1] = [plan[largest][:half], plan[largest][half:]]
    return plan


def group_by_prompt(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, longest: int
) -> list[list[int]]:
    """Group sequences that have the same prompt, so that a row computes it once for all of a group.

    Args:
        prompts: The prompt of each sequence, as ids.
        completions: The completion of each.
        longest: Tokens that a group's row may have, the token budget; a sequence beyond it is a group of its own.

    Returns:
        Groups as lists of indices, in the order of their first sequences; every index stands in exactly one.

    Example:
        >>> group_by_prompt([[5], [6], [5]], [[1, 2], [3], [4]], longest=10)
        [[0, 2], [1]]
        >>> group_by_prompt([[5], [5], [5]], [[1, 2], [3, 4], [5, 6]], longest=3)
        [[0, 1], [2]]
    """
    groups: list[list[int]] = []
    # Of each prompt the group that still takes sequences, and the tokens it has room for.
    latest: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for index, (ids, completion) in enumerate(zip(prompts, completions, strict=True)):
        prompt, more = tuple(ids), len(completion) - 1
        group, room = latest.get(prompt, ([], -1))
        if room < more:
            group, room = [], longest - len(prompt)
            groups.append(group)
        group.append(index)
        latest[prompt] = group, room - more
    return groups


def _padded_plan(order: Sequence[int], widths: Sequence[int], budget: int) -> list[list[int]]:
    plan: list[list[int]] = []
    for index in order:
        # Longest first: the first pair of a micro-batch sets its width.
        if plan and widths[plan[-1][0]] * (len(plan[-1]) + 1) <= budget:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def _packed_plan(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    plan: list[list[int]] = []
    room: list[int] = []
    for index in order:
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), len(plan))
        if place == len(plan):
            plan.append([])
            room.append(budget)
        plan[place].append(index)
        room[place] -= lengths[index]
    # The last one may have stayed nearly empty, at the price of a whole one's gradients. Evenly filled, there
    # may be fewer of them, and never a longer one.
    for count in range(max(1, -(-sum(lengths) // budget)), len(plan) + 1):
        even = _even_plan(order, lengths, count)
        longest = max((sum(lengths[i] for i in part) for part in even), default=0)
        if longest <= max(budget - min(room, default=0), 1):
            return even
    return plan


def _even_plan(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Give each pair, longest first, to the emptiest of ``count`` micro-batches (Graham 1969)."""
    plan: list[list[int]] = [[] for _ in range(min(count, len(order)))]
    load = [0] * len(plan)
    for index in order:
        place = load.index(min(load))
        plan[place].append(index)
        load[place] += lengths[index]
    return plan
