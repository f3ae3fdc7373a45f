"""How preference pairs are laid out as rows of tokens: packed, shared-prefix, and plain rows as the oracle.

A shared row is ``[prompt | chosen | rejected]``: the prompt is computed once, rejected does not see chosen, and
its positions restart after the prompt. Packed, all pairs lie behind each other in one row without padding. A
plain row holds one completion behind its own copy of the prompt. Either way a row set says which hidden states
predict which completion tokens. Models are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PROMPT, CHOSEN, REJECTED, PADDING = 0, 1, 2, 3


class PairSpan(NamedTuple):
    """Where a pair lies in a packed row: prompt and chosen in [start, fork), rejected in [fork, end).

    Attributes:
        start: First position of the prompt.
        prompt_end: One past the prompt's last position.
        fork: One past the chosen answer's last position; the rejected answer starts here.
        end: One past the rejected answer's last position.
    """

    start: int
    prompt_end: int
    fork: int
    end: int


@dataclass(frozen=True)
class PairBatch:
    """Token ids of preference pairs, ragged, with what is known of the reference.

    Attributes:
        prompts: Prompt ids of each pair, never empty.
        chosen: Chosen completion ids of each pair, never empty.
        rejected: Rejected completion ids of each pair, never empty.
        rows: Index of each pair in its data set, to name it in messages.
        ref_chosen_logps: Stored reference log-probabilities, shape [B], or ``None``.
        ref_rejected_logps: The same of the rejected completions.
    """

    prompts: Sequence[Sequence[int]]
    chosen: Sequence[Sequence[int]]
    rejected: Sequence[Sequence[int]]
    rows: Sequence[int]
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, index: Sequence[int]) -> PairBatch:
        """Return the pairs at ``index``, in that order."""
        positions = list(index)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[torch.tensor(positions, dtype=torch.long)]

        return PairBatch(
            [self.prompts[i] for i in positions],
            [self.chosen[i] for i in positions],
            [self.rejected[i] for i in positions],
            [self.rows[i] for i in positions],
            pick(self.ref_chosen_logps),
            pick(self.ref_rejected_logps),
        )

    def row_lengths(self, *, shared: bool) -> list[int]:
        """Return the length of each pair's longest row in the given layout, in tokens."""
        sizes = [tuple(map(len, pair)) for pair in zip(self.prompts, self.chosen, self.rejected, strict=True)]
        return [p + c + r - 2 if shared else p + max(c, r) - 1 for p, c, r in sizes]


@dataclass(frozen=True)
class Rows:
    """Padded rows and the predictions to read from them.

    Attributes:
        input_ids: Shape [R, T]; padding holds id 0 and is never attended to.
        position_ids: Shape [R, T].
        segments: PROMPT, CHOSEN, REJECTED or PADDING of each position. Shape [R, T], int8.
        predictors: Flat positions in [0, R·T) whose hidden state predicts a completion token. Shape [N].
        targets: The token each of them predicts. Shape [N].
        owners: The sequence each prediction counts to: pair ``i`` is sequence ``2 i`` (chosen) and
            ``2 i + 1`` (rejected). Shape [N].
        num_pairs: Pairs in the rows.
        shared: Whether chosen and rejected share a row, so that attention needs the segments.
        spans: Where each pair lies, in packed rows; empty in others.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    num_pairs: int
    shared: bool
    spans: tuple[PairSpan, ...] = ()

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows with every tensor on ``device``."""
        tensors = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)

    def padding_mask(self) -> Tensor:
        """Return 1 where a token stands and 0 on padding. Shape [R, T], int64."""
        return (self.segments != PADDING).long()

    def allowed_attention(self) -> Tensor:
        """Return which position may attend to which: causal, the prompt or one's own segment.

        Padding attends to padding, so that no row of the softmax is empty. Shape [R, 1, T, T], bool.
        """
        queries, keys = self.segments[:, :, None], self.segments[:, None, :]
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        return (((keys == queries) | (keys == PROMPT)) & causal)[:, None]


def shared_rows(pairs: PairBatch) -> Rows:
    """Lay each pair as one row ``[prompt | chosen | rejected]``, right-padded.

    The last token of each completion is left out of the row: nothing is predicted from it. The first token of
    both completions is predicted from the last prompt token.

    Example:
        >>> rows = shared_rows(PairBatch([[5, 6]], [[7, 8]], [[9, 10, 11]], [0]))
        >>> rows.input_ids.tolist(), rows.position_ids.tolist()
        ([[5, 6, 7, 9, 10]], [[0, 1, 2, 2, 3]])
        >>> rows.predictors.tolist(), rows.targets.tolist()
        ([1, 2, 1, 3, 4], [7, 8, 9, 10, 11])
    """
    return _pad(_shared_layouts(pairs), num_pairs=len(pairs), shared=True)


def packed_rows(pairs: PairBatch) -> Rows:
    """Lay all pairs behind each other in one row, each as in `shared_rows`, without padding.

    Example:
        >>> rows = packed_rows(PairBatch([[5, 6], [4]], [[7, 8], [3]], [[9], [2]], [0, 1]))
        >>> rows.input_ids.tolist(), rows.position_ids.tolist()
        ([[5, 6, 7, 4]], [[0, 1, 2, 0]])
        >>> rows.spans[0], rows.predictors.tolist()
        (PairSpan(start=0, prompt_end=2, fork=3, end=3), [1, 2, 1, 3, 3])
    """
    spans, start = [], 0
    for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
        prompt_end = start + len(prompt)
        fork = prompt_end + len(chosen) - 1
        spans.append(PairSpan(start, prompt_end, fork, fork + len(rejected) - 1))
        start = spans[-1].end
    one = _Layout([], [], [], [], [], [])
    for span, layout in zip(spans, _shared_layouts(pairs), strict=True):
        one.predictors.extend(span.start + position for position in layout.predictors)
        for whole, part in zip(one.along_the_row(), layout.along_the_row(), strict=True):
            whole.extend(part)
    return replace(_pad([one], num_pairs=len(pairs), shared=True), spans=tuple(spans))


def plain_rows(pairs: PairBatch) -> Rows:
    """Lay each completion as a row of its own behind the prompt, right-padded: chosen, rejected, chosen, …

    Example:
        >>> rows = plain_rows(PairBatch([[5, 6]], [[7, 8]], [[9]], [0]))
        >>> rows.input_ids.tolist(), rows.predictors.tolist(), rows.targets.tolist()
        ([[5, 6, 7], [5, 6, 0]], [1, 2, 4], [7, 8, 9])
    """
    layouts = []
    for i, (prompt, *completions) in enumerate(zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)):
        for side, completion in enumerate(completions):
            length = len(prompt) + len(completion) - 1
            layouts.append(
                _Layout(
                    [*prompt, *completion[:-1]],
                    [*range(length)],
                    [PROMPT] * length,
                    [*range(len(prompt) - 1, length)],
                    [*completion],
                    [2 * i + side] * len(completion),
                )
            )
    return _pad(layouts, num_pairs=len(pairs), shared=False)


class _Layout(NamedTuple):
    """One row before padding: its tokens, and what is predicted from which of them."""

    input_ids: list[int]
    position_ids: list[int]
    segments: list[int]
    predictors: list[int]
    targets: list[int]
    owners: list[int]

    def along_the_row(self) -> tuple[list[int], ...]:
        """Return all but the predictors, which count positions."""
        return self.input_ids, self.position_ids, self.segments, self.targets, self.owners


def _shared_layouts(pairs: PairBatch) -> list[_Layout]:
    layouts = []
    for i, (prompt, chosen, rejected) in enumerate(
        zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ):
        p, c, r = len(prompt), len(chosen), len(rejected)
        layouts.append(
            _Layout(
                [*prompt, *chosen[:-1], *rejected[:-1]],
                [*range(p + c - 1), *range(p, p + r - 1)],
                [PROMPT] * p + [CHOSEN] * (c - 1) + [REJECTED] * (r - 1),
                # Chosen is predicted from the last prompt token on; rejected from there too, then from its own part.
                [*range(p - 1, p + c - 1), p - 1, *range(p + c - 1, p + c + r - 2)],
                [*chosen, *rejected],
                [2 * i] * c + [2 * i + 1] * r,
            )
        )
    return layouts


def _pad(layouts: Sequence[_Layout], *, num_pairs: int, shared: bool) -> Rows:
    width = max(len(layout.input_ids) for layout in layouts)
    shape = (len(layouts), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, PADDING, np.int8)
    for row, layout in enumerate(layouts):
        length = len(layout.input_ids)
        input_ids[row, :length] = layout.input_ids
        position_ids[row, :length] = layout.position_ids
        segments[row, :length] = layout.segments

    def joined(parts: Iterable[Sequence[int]]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))

    return Rows(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(segments),
        joined([place + row * width for place in layout.predictors] for row, layout in enumerate(layouts)),
        joined(layout.targets for layout in layouts),
        joined(layout.owners for layout in layouts),
        num_pairs=num_pairs,
        shared=shared,
    )
