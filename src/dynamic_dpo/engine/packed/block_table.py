"""Which blocks of 128 × 128 scores a packed row needs, worked out from its spans without a T × T mask.

A query of a packed row sees at most two ranges of keys: of the prompt before it, and of its own segment up to
itself. Both are known from the spans, and a window only moves where they begin; so a block is empty, full or in
between by counting, in O(T + (T / 128)²) time and O((T / 128)²) memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynamic_dpo.engine.rows import PromptSpan

# The edge of FlexAttention's blocks.
BLOCK = 128
# Dimensions of size 1 would be compiled anew.
_FEWEST_BLOCKS = 2


class BlockTable(NamedTuple):
    """What FlexAttention wants to know of a packed row, its length T rounded up to N blocks, as int32.

    Attributes:
        ranges: Of each position the first key of the prompt that it sees and one past the last, and the first key of
            its own segment, of which it sees all up to itself. Padding sees itself alone. Shape [3, 128 N].
        partial_counts: Of each block of queries the number of key blocks it needs in part. Shape [1, 1, N].
        partial_keys: Which these are, in order, then the others. Shape [1, 1, N, N].
        full_counts: The number of key blocks it needs wholly. Shape [1, 1, N].
        full_keys: Which these are, likewise. Shape [1, 1, N, N].
        partial_counts_of_keys: The same four from each block of keys to the blocks of queries that need it.
        partial_queries: See there.
        full_counts_of_keys: See there.
        full_queries: See there.
    """

    ranges: Tensor
    partial_counts: Tensor
    partial_keys: Tensor
    full_counts: Tensor
    full_keys: Tensor
    partial_counts_of_keys: Tensor
    partial_queries: Tensor
    full_counts_of_keys: Tensor
    full_queries: Tensor

    @property
    def length(self) -> int:
        """The padded length 128 N."""
        return self.ranges.shape[1]


def visible_ranges(spans: Sequence[PromptSpan], window: int | None, length: int) -> np.ndarray:
    """Return which keys each position of a packed row sees, as two ranges; see `BlockTable.ranges`.

    Args:
        spans: The prompts with their completions; together they cover all T positions.
        window: A query sees keys whose position is less than this before its own; all of them by default.
        length: Positions in all, T or more.

    Example:
        >>> visible_ranges([PromptSpan(0, 2, (3, 5))], None, 6).tolist()
        [[0, 0, 0, 0, 0, 5], [0, 0, 0, 2, 2, 5], [0, 0, 0, 3, 3, 5]]
    """
    ranges = np.tile(np.arange(length, dtype=np.int32), (3, 1))
    for span in spans:
        for before, own in span.segments:
            shift = before.stop - before.start
            # The first position in the prompt's and the segment's own count that each query sees.
            first = np.zeros(own.stop - own.start, np.int32)
            if window is not None:
                first = np.maximum(np.arange(shift, shift + len(first)) - window + 1, 0)
            ranges[0, own] = before.start + np.minimum(first, shift)
            ranges[1, own] = before.stop
            ranges[2, own] = own.start + np.maximum(first - shift, 0)
            if before.stop == own.start:  # Side by side, both ranges are one.
                ranges[0, own] = before.stop
                ranges[2, own] = before.start + first
    return ranges


def _needed_blocks(ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which key blocks each query block needs at all and which wholly, each of shape [N, N], bool."""
    queries = np.arange(ranges.shape[1])
    blocks = ranges.shape[1] // BLOCK
    row = queries // BLOCK
    touching, covering = (np.zeros((blocks, blocks + 1), np.int32) for _ in range(2))
    for start, end in ((ranges[0], ranges[1]), (ranges[2], queries + 1)):
        # Counted where a range of blocks begins and one past its end: the running sum is how many hold the block.
        for counts, first, last in (
            (touching, start // BLOCK, -(-end // BLOCK)),
            (covering, -(-start // BLOCK), end // BLOCK),
        ):
            some = (start < end) & (first < last)
            np.add.at(counts, (row[some], first[some]), 1)
            np.add.at(counts, (row[some], last[some]), -1)
    touched, covered = (np.cumsum(counts, axis=1)[:, :blocks] for counts in (touching, covering))
    # No query covers a block with both of its ranges: each counts once.
    return touched > 0, covered == BLOCK


def _listed(needed: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    counts = needed.sum(axis=1, dtype=np.int32)
    order = np.argsort(~needed, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


# Every layer of a micro-batch asks for the same tables, one for each window; the next micro-batch for others.
@lru_cache(maxsize=4)
def block_table(spans: tuple[PromptSpan, ...], window: int | None, device: torch.device) -> BlockTable:
    """Return FlexAttention's tables for a packed row.

    Args:
        spans: The prompts with their completions; together they cover all T positions.
        window: A query sees keys whose position is less than this before its own; all of them by default.
        device: Where the tables are wanted.
    """
    blocks = max(-(-spans[-1].end // BLOCK), _FEWEST_BLOCKS)
    ranges = visible_ranges(spans, window, blocks * BLOCK)
    needed, full = _needed_blocks(ranges)
    partial = needed & ~full
    return BlockTable(
        torch.from_numpy(ranges).to(device),
        *_listed(partial, device),
        *_listed(full, device),
        *_listed(partial.T, device),
        *_listed(full.T, device),
    )
