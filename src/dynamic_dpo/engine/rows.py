"""How prompts and their completions are laid out as rows of tokens: packed, shared, and plain rows as the oracle.

A shared row is ``[prompt | completion | completion …]``, for a preference pair ``[prompt | chosen | rejected]``: the
prompt is computed once, no completion sees another one, and the positions of each restart after the prompt. Packed,
all of them lie behind each other in one row without padding. A plain row holds one completion behind its own copy of
the prompt. Either way a row set says which hidden states predict which completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, compress
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

# The segment of a position; that of a prompt's k-th completion is k, counted from 1.
PADDING, PROMPT = -1, 0


class PromptSpan(NamedTuple):
    """Where a prompt and its completions lie in a packed row.

    Attributes:
        start: First position of the prompt.
        prompt_end: One past the prompt's last position.
        ends: One past the last position of each completion; a completion starts where the one before it ends.
    """

    start: int
    prompt_end: int
    ends: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last position of all."""
        return self.ends[-1]

    @property
    def prompt(self) -> slice:
        """The prompt."""
        return slice(self.start, self.prompt_end)

    @property
    def trunk(self) -> slice:
        """The prompt and its first completion: an ordinary causal sequence."""
        return slice(self.start, self.ends[0])

    @property
    def segments(self) -> list[tuple[slice, slice]]:
        """What attends together: the prompt before it, empty for the trunk, and the trunk or a further completion.

        Positions count through both: the first of the second stands behind the last of the first.
        """
        return [
            (slice(self.start, self.start), self.trunk),
            *((self.prompt, branch) for branch in self.branches),
        ]

    @property
    def branches(self) -> list[slice]:
        """The further completions, without those of one token: that is predicted from the prompt alone."""
        parts = zip(self.ends, self.ends[1:], strict=False)
        return [slice(start, end) for start, end in parts if start < end]


# Of each prompt's completions 1 for a token that is scored and 0 for one that is not, or ``None`` where all are;
# ``None`` where that holds for all prompts.
Masks = Sequence[Sequence[Sequence[int] | None]] | None


class PromptsAndCompletions(Protocol):
    """Token ids of prompts, and of each prompt's completions; none of them empty."""

    @property
    def prompts(self) -> Sequence[Sequence[int]]:
        """Prompt ids."""
        ...

    @property
    def completions(self) -> Sequence[Sequence[Sequence[int]]]:
        """Of each prompt the ids of its completions, one or more."""
        ...

    @property
    def masks(self) -> Masks:
        """Which tokens of the completions are scored."""
        ...


class PromptBatch(NamedTuple):
    """Prompts with any number of completions each, as `PromptsAndCompletions` has them."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[Sequence[int]]]
    masks: Masks = None

    def select(self, index: Sequence[int]) -> PromptBatch:
        """Return the prompts at ``index`` with their completions, in that order."""
        masks = None if self.masks is None else [self.masks[i] for i in index]
        return PromptBatch([self.prompts[i] for i in index], [self.completions[i] for i in index], masks)


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
        chosen_masks: Of each chosen completion 1 for a token that is scored and 0 for one that is only read, or
            ``None`` where all are scored; ``None`` where that holds for all pairs.
        rejected_masks: The same of the rejected completions.
    """

    prompts: Sequence[Sequence[int]]
    chosen: Sequence[Sequence[int]]
    rejected: Sequence[Sequence[int]]
    rows: Sequence[int]
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    chosen_masks: Sequence[Sequence[int] | None] | None = None
    rejected_masks: Sequence[Sequence[int] | None] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def completions(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Of each pair the chosen and the rejected completion."""
        return list(zip(self.chosen, self.rejected, strict=True))

    @property
    def masks(self) -> list[tuple[Sequence[int] | None, Sequence[int] | None]] | None:
        """Of each pair which tokens of the chosen and of the rejected completion are scored."""
        if self.chosen_masks is None and self.rejected_masks is None:
            return None
        nothing = [None] * len(self)
        return list(zip(self.chosen_masks or nothing, self.rejected_masks or nothing, strict=True))

    def select(self, index: Sequence[int]) -> PairBatch:
        """Return the pairs at ``index``, in that order."""
        positions = list(index)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[torch.tensor(positions, dtype=torch.long)]

        def pick_masks(masks: Sequence[Sequence[int] | None] | None) -> list[Sequence[int] | None] | None:
            return None if masks is None else [masks[i] for i in positions]

        return PairBatch(
            [self.prompts[i] for i in positions],
            [self.chosen[i] for i in positions],
            [self.rejected[i] for i in positions],
            [self.rows[i] for i in positions],
            pick(self.ref_chosen_logps),
            pick(self.ref_rejected_logps),
            pick_masks(self.chosen_masks),
            pick_masks(self.rejected_masks),
        )


def scored_lengths(batch: PromptsAndCompletions) -> list[list[int]]:
    """Return the scored tokens of each prompt's completions.

    Example:
        >>> scored_lengths(PromptBatch([[5]], [[[1, 2, 3], [4, 5]]], [[[1, 0, 1], None]]))
        [[2, 2]]
    """
    masks = batch.masks
    if masks is None:
        return [[len(ids) for ids in completions] for completions in batch.completions]
    return [
        [len(ids) if mask is None else sum(mask) for ids, mask in zip(completions, of_each, strict=True)]
        for completions, of_each in zip(batch.completions, masks, strict=True)
    ]


def row_lengths(batch: PromptsAndCompletions, *, shared: bool) -> list[int]:
    """Return the length of each prompt's longest row in the given layout, in tokens.

    Example:
        >>> pairs = PairBatch([[5, 6]], [[7, 8]], [[9, 10, 11]], [0])
        >>> row_lengths(pairs, shared=True), row_lengths(pairs, shared=False)
        ([5], [4])
    """
    lengths = []
    for prompt, completions in zip(batch.prompts, batch.completions, strict=True):
        # Nothing is predicted from a completion's last token, which is left out.
        own = [len(completion) - 1 for completion in completions]
        lengths.append(len(prompt) + (sum(own) if shared else max(own)))
    return lengths


@dataclass(frozen=True)
class Rows:
    """Padded rows and the predictions to read from them.

    Attributes:
        input_ids: Shape [R, T]; padding holds id 0 and is never attended to.
        position_ids: Shape [R, T].
        segments: PROMPT, PADDING, or the completion that each position belongs to. Shape [R, T], int32.
        predictors: Flat positions in [0, R·T) whose hidden state predicts a scored completion token. Shape [N].
        targets: The token each of them predicts. Shape [N].
        owners: The sequence each prediction counts to: completions are numbered through, so that pair ``i`` is
            sequence ``2 i`` (chosen) and ``2 i + 1`` (rejected). Shape [N].
        num_sequences: Completions in the rows.
        shared: Whether completions share a row, so that attention needs the segments.
        spans: Where each prompt with its completions lies, in packed rows; empty in others.
        own_positions: Whether the model is to be told the positions of rows that hold one sequence, too.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    num_sequences: int
    shared: bool
    spans: tuple[PromptSpan, ...] = ()
    own_positions: bool = False

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


def shared_rows(batch: PromptsAndCompletions) -> Rows:
    """Lay each prompt and its completions as one row ``[prompt | completion | …]``, right-padded.

    The last token of each completion is left out of the row: nothing is predicted from it. The first token of
    every completion is predicted from the last prompt token.

    Example:
        >>> rows = shared_rows(PairBatch([[5, 6]], [[7, 8]], [[9, 10, 11]], [0]))
        >>> rows.input_ids.tolist(), rows.position_ids.tolist()
        ([[5, 6, 7, 9, 10]], [[0, 1, 2, 2, 3]])
        >>> rows.predictors.tolist(), rows.targets.tolist()
        ([1, 2, 1, 3, 4], [7, 8, 9, 10, 11])
    """
    return _pad(_shared_layouts(batch), _num_completions(batch), shared=True)


def packed_rows(batch: PromptsAndCompletions) -> Rows:
    """Lay all of `shared_rows` behind each other in one row, without padding.

    Example:
        >>> rows = packed_rows(PairBatch([[5, 6], [4]], [[7, 8], [3]], [[9], [2]], [0, 1]))
        >>> rows.input_ids.tolist(), rows.position_ids.tolist()
        ([[5, 6, 7, 4]], [[0, 1, 2, 0]])
        >>> rows.spans[0], rows.predictors.tolist()
        (PromptSpan(start=0, prompt_end=2, ends=(3, 3)), [1, 2, 1, 3, 3])
    """
    spans: list[PromptSpan] = []
    one = _Layout([], [], [], [], [], [])
    layouts = _shared_layouts(batch)
    for prompt, completions, layout in zip(batch.prompts, batch.completions, layouts, strict=True):
        start = len(one.input_ids)
        ends = accumulate((len(ids) - 1 for ids in completions), initial=start + len(prompt))
        spans.append(PromptSpan(start, next(ends), tuple(ends)))
        one.predictors.extend(start + position for position in layout.predictors)
        for whole, part in zip(one.along_the_row(), layout.along_the_row(), strict=True):
            whole.extend(part)
    return replace(_pad([one], _num_completions(batch), shared=True), spans=tuple(spans))


def plain_rows(batch: PromptsAndCompletions) -> Rows:
    """Lay each completion as a row of its own behind the prompt, right-padded; a prompt's rows stand together.

    Example:
        >>> rows = plain_rows(PairBatch([[5, 6]], [[7, 8]], [[9]], [0]))
        >>> rows.input_ids.tolist(), rows.predictors.tolist(), rows.targets.tolist()
        ([[5, 6, 7], [5, 6, 0]], [1, 2, 4], [7, 8, 9])
    """
    prompts, alone = [], []
    for prompt, completions in zip(batch.prompts, batch.completions, strict=True):
        prompts += [prompt] * len(completions)
        alone += [[completion] for completion in completions]
    masks = None if batch.masks is None else [[mask] for of_prompt in batch.masks for mask in of_prompt]
    return _pad(_shared_layouts(PromptBatch(prompts, alone, masks)), len(alone), shared=False)


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


def _shared_layouts(batch: PromptsAndCompletions) -> list[_Layout]:
    layouts = []
    owner = 0
    masks = batch.masks or [[None] * len(completions) for completions in batch.completions]
    for prompt, completions, of_prompt in zip(batch.prompts, batch.completions, masks, strict=True):
        p = len(prompt)
        one = _Layout([*prompt], [*range(p)], [PROMPT] * p, [], [], [])
        for number, (completion, mask) in enumerate(zip(completions, of_prompt, strict=True), start=1):
            start, own = len(one.input_ids), len(completion) - 1
            one.input_ids.extend(completion[:-1])
            one.position_ids.extend(range(p, p + own))
            one.segments.extend([number] * own)
            predictors, targets = [p - 1, *range(start, start + own)], completion
            if mask is not None:
                # What is not scored is read like a prompt: nothing of it is predicted.
                predictors, targets = (list(compress(values, mask)) for values in (predictors, targets))
            one.predictors.extend(predictors)
            one.targets.extend(targets)
            one.owners.extend([owner] * len(targets))
            owner += 1
        layouts.append(one)
    return layouts


def _num_completions(batch: PromptsAndCompletions) -> int:
    return sum(len(completions) for completions in batch.completions)


def _pad(layouts: Sequence[_Layout], num_sequences: int, *, shared: bool) -> Rows:
    width = max(len(layout.input_ids) for layout in layouts)
    shape = (len(layouts), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, PADDING, np.int32)
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
        num_sequences=num_sequences,
        shared=shared,
    )
