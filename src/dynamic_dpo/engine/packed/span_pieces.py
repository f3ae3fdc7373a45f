"""Which queries of a packed row meet which keys: the pieces that attention is computed by on a CPU.

Without a window a prompt with its first completion is a causal triangle; a further completion is a triangle of its
own and a rectangle on the prompt. Where a window cuts keys off, queries go block by block against the keys that
they can reach, so that a long row under a small window costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynamic_dpo.engine.rows import PromptSpan

# Queries of a block under a window: as many as the window, so that half of the scores are wanted, within limits.
_FEWEST_QUERIES, _MOST_QUERIES = 32, 512


class Piece(NamedTuple):
    """Some queries and all or some of their keys.

    Attributes:
        queries: Where the queries lie in the row.
        keys: Where the keys lie in the row: of the prompt, of the queries' own segment, or of both in this order.
        causal: Whether query and key of one number are one token, and every query sees the keys up to itself.
        gap: By how many positions the first query stands behind the first key, where the window or the future
            hides some of the keys; else all keys are seen, or a triangle of them.
    """

    queries: slice
    keys: list[slice]
    causal: bool = False
    gap: int | None = None

    def visible(self, window: int | None, device: torch.device) -> Tensor | None:
        """Return which query sees which key where the piece is no triangle and no rectangle. Shape [Q, K], bool."""
        if self.gap is None:
            return None
        num_keys = sum(part.stop - part.start for part in self.keys)
        queries = torch.arange(self.gap, self.gap + self.queries.stop - self.queries.start, device=device)
        distance = queries[:, None] - torch.arange(num_keys, device=device)
        visible = distance >= 0
        return visible if window is None else visible & (distance < window)


def pieces(
    spans: Sequence[PromptSpan], window: int | None = None, most_scores: int | None = None
) -> Iterator[list[Piece]]:
    """Cut the attention of a packed row into pieces.

    Args:
        spans: The prompts with their completions; together they cover all T positions.
        window: A query sees keys whose position is less than this before its own; all of them by default.
        most_scores: Queries times keys of a piece, where it is to be bounded; a piece of 32 queries may be more.

    Yields:
        The pieces of some queries: together they hold every key that these see, each once. Every query occurs once.

    Example:
        >>> [[(piece.queries, piece.keys) for piece in some] for some in pieces([PromptSpan(0, 4, (6, 8))])]
        [[(slice(0, 6, None), [slice(0, 6, None)])], [(slice(6, 8, None), [slice(0, 4, None)]), \
(slice(6, 8, None), [slice(6, 8, None)])]]
        >>> [[piece.keys for piece in some] for some in pieces([PromptSpan(0, 4, (4, 6))], window=3)]
        [[[slice(0, 4, None)]], [[slice(2, 4, None), slice(4, 6, None)]]]
    """
    for before, own in (segment for span in spans for segment in span.segments):
        length = own.stop - own.start + before.stop - before.start
        if most_scores is not None or (window is not None and window < length):
            yield from ([block] for block in _blocks(before, own, window, most_scores))
        elif before.start == before.stop:
            yield [Piece(own, [own], causal=True)]
        else:
            yield [Piece(own, [before]), Piece(own, [own], causal=True)]


def _blocks(before: slice, own: slice, window: int | None, most_scores: int | None) -> Iterator[Piece]:
    shift = before.stop - before.start
    length = shift + own.stop - own.start
    size = _MOST_QUERIES if window is None else min(max(window, _FEWEST_QUERIES), _MOST_QUERIES)
    if most_scores is not None:
        reach = length if window is None else min(length, window + size)
        size = min(max(most_scores // reach, _FEWEST_QUERIES), size)
    for start in range(own.start, own.stop, size):
        queries = slice(start, min(start + size, own.stop))
        position = shift + start - own.start
        first = 0 if window is None else max(0, position - window + 1)
        keys = [slice(own.start + max(first - shift, 0), queries.stop)]
        if first < shift:
            keys.insert(0, slice(before.start + first, before.stop))
        yield Piece(queries, keys, gap=position - first)
