"""Block tables worked out from spans are those that PyTorch makes of the whole mask."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from dynamic_dpo.engine.packed.block_table import BLOCK, BlockTable, block_table, visible_ranges
from dynamic_dpo.engine.rows import PromptSpan
from helpers_attention import dense_mask, random_spans

CPU = torch.device("cpu")
WINDOWS = [None, 1, 2, 100, 128, 129, 300, 1000]


def padded_mask(spans: tuple[PromptSpan, ...], window: int | None, length: int) -> torch.Tensor:
    """The mask by brute force; padding sees itself. Shape [length, length]."""
    mask = torch.eye(length, dtype=torch.bool)
    mask[: spans[-1].end, : spans[-1].end] = dense_mask(spans, window)
    return mask


def listed(counts: torch.Tensor, keys: torch.Tensor) -> list[list[int]]:
    """The blocks of each line, without what stands behind them."""
    return [line[:count] for line, count in zip(keys[0, 0].tolist(), counts[0, 0].tolist(), strict=True)]


def lists(table: BlockTable) -> list[list[list[int]]]:
    return [listed(*table[place : place + 2]) for place in (1, 3, 5, 7)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("longest", [5, 60, 700])
def test_they_are_the_blocks_of_the_whole_mask(window: int | None, longest: int) -> None:
    draw = random.Random(longest)
    for prompts in (1, 2, 7):
        spans = random_spans(draw, prompts=prompts, longest=longest)
        table = block_table(spans, window, CPU)
        mask = padded_mask(spans, window, table.length)
        theirs = create_block_mask(
            lambda batch, head, query, key, mask=mask: mask[query, key], None, None, *mask.shape, device="cpu"
        )
        pairs = [
            (theirs.kv_num_blocks, theirs.kv_indices),
            (theirs.full_kv_num_blocks, theirs.full_kv_indices),
            (theirs.q_num_blocks, theirs.q_indices),
            (theirs.full_q_num_blocks, theirs.full_q_indices),
        ]
        assert lists(table) == [listed(*pair) for pair in pairs]
        assert all(tensor.dtype == torch.int32 for tensor in table)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_ranges_admit_what_the_mask_admits(window: int | None) -> None:
    spans = random_spans(random.Random(1), prompts=5, longest=150)
    length = spans[-1].end + 7
    starts, ends, own = torch.from_numpy(visible_ranges(spans, window, length))[:, :, None]
    queries, keys = torch.arange(length)[:, None], torch.arange(length)[None, :]
    admitted = ((keys >= starts) & (keys < ends)) | ((keys >= own) & (keys <= queries))
    assert torch.equal(admitted, padded_mask(spans, window, length))


def test_side_by_side_ranges_fill_a_block_together() -> None:
    # The first completion leaves no position of its own, so that the second stands right behind the prompt.
    table = block_table((PromptSpan(0, 200, (200, 400)),), None, CPU)
    assert lists(table)[1][2] == [0, 1]


def test_a_row_has_two_blocks_at_least() -> None:
    assert block_table((PromptSpan(0, 2, (3,)),), None, CPU).length == 2 * BLOCK


def test_a_long_row_takes_little_memory() -> None:
    """A mask of 32,768 × 32,768 has 1 GiB; eight lists of 256 × 256 numbers are 2 MiB."""
    spans = (PromptSpan(0, 20_000, (26_000, 32_768)),)
    tracemalloc.start()
    block_table.__wrapped__(spans, 4096, CPU)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
