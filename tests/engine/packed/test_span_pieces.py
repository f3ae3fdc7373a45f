"""The pieces hold every key that is seen, once, and not many others."""

from __future__ import annotations

import random

import pytest
import torch

from dynamic_dpo.engine.packed.span_pieces import Piece, pieces
from dynamic_dpo.engine.rows import PromptSpan
from helpers_attention import dense_mask, random_spans


def places(parts: list[slice]) -> list[int]:
    return [place for part in parts for place in range(part.start, part.stop)]


def seen(piece: Piece, window: int | None) -> torch.Tensor:
    queries, keys = places([piece.queries]), places(piece.keys)
    visible = piece.visible(window, torch.device("cpu"))
    if visible is None:
        visible = torch.ones(len(queries), len(keys), dtype=torch.bool)
        visible = visible.tril() if piece.causal else visible
    return visible


@pytest.mark.parametrize("window", [None, 1, 5, 40, 100])
@pytest.mark.parametrize("most_scores", [None, 1000])
def test_every_visible_key_is_in_one_piece_and_no_other_key(
    window: int | None, most_scores: int | None
) -> None:
    draw = random.Random(window or 0)
    for _ in range(20):
        spans = random_spans(draw, prompts=4, longest=120)
        counts = torch.zeros(spans[-1].end, spans[-1].end, dtype=torch.int32)
        met = []
        for some in pieces(spans, window, most_scores):
            met += places([some[0].queries])
            for piece in some:
                rows, columns = torch.tensor(places([piece.queries])), torch.tensor(places(piece.keys))
                counts[rows[:, None], columns] += seen(piece, window).int()
                # The kernel's log-sum-exp of nothing would be 0, not minus infinity.
                assert bool(seen(piece, window).any(1).all())
        assert torch.equal(counts, dense_mask(spans, window).int())
        assert sorted(met) == list(range(spans[-1].end))


def test_nothing_is_cut_where_no_window_is_reached() -> None:
    spans = (PromptSpan(0, 30, (50, 60)),)
    assert list(pieces(spans, 50)) == list(pieces(spans))
    assert [len(some) for some in pieces(spans)] == [1, 2]
    # The trunk of 50 is cut, the second completion's 40 positions are not.
    assert [len(some) for some in pieces(spans, 49)] == [1, 1, 2]


def sizes(spans: tuple[PromptSpan, ...], **options: int) -> list[tuple[int, int]]:
    """Queries and keys of each piece."""
    return [
        (len(places([piece.queries])), len(places(piece.keys)))
        for some in pieces(spans, **options)
        for piece in some
    ]


@pytest.mark.parametrize("window", [16, 128, 1024])
def test_few_scores_are_computed_that_a_window_hides(window: int) -> None:
    spans = (PromptSpan(0, 16000, (18000, 20000)),)
    wanted = 20000 * window
    assert wanted < sum(queries * keys for queries, keys in sizes(spans, window=window)) < 3.5 * wanted


def test_a_bound_on_scores_is_kept_down_to_32_queries() -> None:
    spans = (PromptSpan(0, 3000, (3500, 4000)),)
    assert max(queries * keys for queries, keys in sizes(spans, most_scores=200_000)) <= 200_000
    assert max(queries for queries, _ in sizes(spans, most_scores=10)) == 32
