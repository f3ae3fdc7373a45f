"""Rows and plans: what every predicting position sees is exactly the sequence it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.engine.plan import plan_microbatches
from dynamic_dpo.engine.rows import (
    PADDING,
    PairBatch,
    PromptBatch,
    PromptSpan,
    Rows,
    packed_rows,
    plain_rows,
    row_lengths,
    shared_rows,
)
from dynamic_dpo.errors import ConfigError

ids = st.lists(st.integers(1, 1000), min_size=1, max_size=6)
some_prompts = st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=5)), min_size=1, max_size=4)
some_pairs = st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=5)


def batch_of(triples: list[tuple[list[int], list[int], list[int]]]) -> PairBatch:
    prompts, chosen, rejected = (list(part) for part in zip(*triples, strict=True))
    return PairBatch(prompts, chosen, rejected, range(len(triples)))


def seen_by(rows: Rows, flat: int) -> list[tuple[int, int]]:
    """(position id, token) of everything that the hidden state at a flat position can look at."""
    row, at = divmod(flat, rows.input_ids.shape[1])
    mask = rows.allowed_attention()[row, 0, at]
    if not rows.shared:
        mask = mask & rows.padding_mask()[row].bool()
    where = mask.nonzero()[:, 0].tolist()
    return sorted((int(rows.position_ids[row, i]), int(rows.input_ids[row, i])) for i in where)


@settings(deadline=None, max_examples=60)
@given(prompts=some_prompts, shared=st.booleans())
def test_each_target_is_predicted_from_its_own_prefix_and_nothing_else(
    prompts: list[tuple[list[int], list[list[int]]]], shared: bool
) -> None:
    rows = (shared_rows if shared else plain_rows)(PromptBatch(*zip(*prompts, strict=True)))
    predictions: dict[int, list[tuple[list[int], int]]] = {}
    for flat, target, owner in zip(
        rows.predictors.tolist(), rows.targets.tolist(), rows.owners.tolist(), strict=True
    ):
        seen = seen_by(rows, flat)
        assert [position for position, _ in seen] == list(range(len(seen)))
        predictions.setdefault(owner, []).append(([token for _, token in seen], target))
    sequences = [(prompt, completion) for prompt, completions in prompts for completion in completions]
    for owner, (prompt, completion) in enumerate(sequences):
        expected = [(prompt + completion[:t], completion[t]) for t in range(len(completion))]
        assert predictions.pop(owner) == expected
    assert not predictions
    assert rows.num_sequences == len(sequences)


@settings(deadline=None, max_examples=40)
@given(prompts=some_prompts)
def test_packed_rows_are_shared_rows_without_padding(
    prompts: list[tuple[list[int], list[list[int]]]],
) -> None:
    batch = PromptBatch(*zip(*prompts, strict=True))
    packed, padded = packed_rows(batch), shared_rows(batch)
    real = padded.segments != PADDING
    for name in ("input_ids", "position_ids", "segments"):
        assert torch.equal(getattr(packed, name)[0], getattr(padded, name)[real])
    for span, (prompt, completions) in zip(packed.spans, prompts, strict=True):
        assert packed.input_ids[0, span.prompt].tolist() == prompt
        assert packed.input_ids[0, span.trunk].tolist() == prompt + completions[0][:-1]
        further = [ids[:-1] for ids in completions[1:] if len(ids) > 1]
        assert [packed.input_ids[0, branch].tolist() for branch in span.branches] == further


@settings(deadline=None, max_examples=40)
@given(triples=some_pairs)
def test_rows_are_as_wide_as_their_lengths_say(triples: list[tuple[list[int], list[int], list[int]]]) -> None:
    pairs = batch_of(triples)
    for shared, rows in ((True, shared_rows(pairs)), (False, plain_rows(pairs))):
        width = max(row_lengths(pairs, shared=shared))
        assert rows.input_ids.shape == (len(pairs) * (1 if shared else 2), width)
        assert rows.shared is shared


def test_a_shared_row_worked_by_hand() -> None:
    rows = shared_rows(batch_of([([5, 6], [7, 8], [9, 10, 11]), ([1], [2], [3])]))
    assert rows.input_ids.tolist() == [[5, 6, 7, 9, 10], [1, 0, 0, 0, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 0, 0, 0, 0]]
    assert rows.targets.tolist() == [7, 8, 9, 10, 11, 2, 3]
    assert rows.predictors.tolist() == [1, 2, 1, 3, 4, 5, 5]
    assert rows.owners.tolist() == [0, 0, 1, 1, 1, 2, 3]
    assert rows.padding_mask().tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert rows.allowed_attention()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],  # rejected does not see chosen
        [1, 1, 0, 1, 1],
    ]


def test_three_completions_of_one_prompt_worked_by_hand() -> None:
    batch = PromptBatch([[5, 6]], [[[7, 8], [9], [10, 11, 12]]])
    rows = shared_rows(batch)
    assert rows.input_ids.tolist() == [[5, 6, 7, 10, 11]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert rows.targets.tolist() == [7, 8, 9, 10, 11, 12]
    assert rows.predictors.tolist() == [1, 2, 1, 1, 3, 4]
    assert rows.owners.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed_rows(batch).spans == (PromptSpan(start=0, prompt_end=2, ends=(3, 3, 5)),)
    assert row_lengths(batch, shared=True) == [5]
    assert row_lengths(batch, shared=False) == [4]


@settings(deadline=None, max_examples=40)
@given(triples=some_pairs)
def test_no_row_of_the_attention_is_empty(triples: list[tuple[list[int], list[int], list[int]]]) -> None:
    rows = shared_rows(batch_of(triples))
    allowed = rows.allowed_attention()[:, 0]
    assert allowed.any(-1).all()
    tokens = rows.segments != PADDING
    # Padding is never seen by a token.
    assert not (allowed & tokens[:, :, None] & ~tokens[:, None, :]).any()


def test_selecting_pairs_keeps_everything_that_belongs_to_them() -> None:
    pairs = PairBatch(
        [[1], [2], [3]], [[4], [5], [6]], [[7], [8], [9]], [10, 20, 30], torch.arange(3.0), -torch.arange(3.0)
    )
    kept = pairs.select([2, 0])
    assert (kept.prompts, kept.chosen, kept.rejected, kept.rows) == (
        [[3], [1]],
        [[6], [4]],
        [[9], [7]],
        [30, 10],
    )
    assert kept.ref_chosen_logps is not None
    assert kept.ref_rejected_logps is not None
    assert kept.ref_chosen_logps.tolist() == [2.0, 0.0]
    assert kept.ref_rejected_logps.tolist() == [-2.0, 0.0]
    bare = batch_of([([1], [2], [3])]).select([0])
    assert bare.ref_chosen_logps is None


def test_moving_rows_moves_every_tensor() -> None:
    rows = shared_rows(batch_of([([5, 6], [7, 8], [9])])).to("meta")
    tensors = [value for value in vars(rows).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (rows.num_sequences, rows.shared) == (2, True)


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    budget=st.integers(1, 2000),
    rows_per_prompt=st.sampled_from([1, 2]),
    at_least=st.integers(1, 50),
)
def test_a_plan_holds_every_pair_once_within_its_budget(
    lengths: list[int], budget: int, rows_per_prompt: int, at_least: int
) -> None:
    plan = plan_microbatches(lengths, budget, rows_per_prompt=rows_per_prompt, at_least=at_least)
    assert sorted(index for part in plan for index in part) == list(range(len(lengths)))
    assert len(plan) >= min(at_least, len(lengths))
    for part in plan:
        padded = max(lengths[i] for i in part) * rows_per_prompt * len(part)
        assert padded <= budget or len(part) == 1
    widths = [max(lengths[i] for i in part) for part in plan]
    assert widths == sorted(widths, reverse=True)


def test_a_plan_is_no_longer_than_its_minimum_asks() -> None:
    assert len(plan_microbatches([5] * 16, 1000)) == 1
    assert [len(part) for part in plan_microbatches([5] * 16, 1000, at_least=4)] == [4, 4, 4, 4]
    assert plan_microbatches([], 10) == []


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens_per_microbatch must be at least 1, got 0"):
        plan_microbatches([1], 0)
