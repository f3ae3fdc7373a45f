"""Single sequences: the log-probabilities of plain logits, every needed token computed once."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.plan import group_by_prompt
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import DataError
from tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_qwen2

# Prompt lengths with the lengths of their samples; one token leaves no position of its own.
SAMPLES = [(5, [7, 1, 4]), (2, [3]), (9, [1]), (1, [6, 6, 2, 5, 1])]


def some_sequences() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of `SAMPLES`, those of one prompt apart from each other."""
    draw = random.Random(7)

    def ids(count: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(count)]

    sequences = [(prompt, ids(n)) for length, sizes in SAMPLES for prompt in [ids(length)] for n in sizes]
    draw.shuffle(sequences)
    prompts, completions = zip(*sequences, strict=True)
    return list(prompts), list(completions)


def through_plain_logits(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
    """Sums of float64 log-softmax, one unpadded sequence at a time."""
    values = []
    with torch.no_grad():
        for prompt, completion in zip(prompts, completions, strict=True):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, :-1].double()
            logps = logits.log_softmax(-1)[len(prompt) - 1 :]
            values.append(logps.gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(values)


@pytest.mark.parametrize("tokens", [None, 8], ids=["one micro-batch", "many"])
@pytest.mark.parametrize("layout", ["packed", "shared", "plain"])
def test_sequences_have_the_log_probabilities_of_plain_logits(layout: Any, tokens: int | None) -> None:
    model = tiny_gpt2().double()
    prompts, completions = some_sequences()
    expected = through_plain_logits(model, prompts, completions)
    scorer = PairScorer(model, EngineConfig(layout=layout, tokens_per_microbatch=tokens))
    assert scorer.layout == layout
    found = scorer.score_sequences(model, prompts, completions)
    torch.testing.assert_close(found.logps, expected, rtol=0, atol=1e-6)
    assert found.lengths.tolist() == [len(ids) for ids in completions]


@pytest.mark.parametrize("layout", ["packed", "shared", "plain"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
def test_in_float32_they_agree_with_plain_logits_and_with_scored_pairs(build: Any, layout: Any) -> None:
    model = build()
    prompts, completions = some_sequences()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    found = scorer.score_sequences(model, prompts, completions).logps
    torch.testing.assert_close(found, through_plain_logits(model, prompts, completions), rtol=1e-6, atol=1e-5)
    other = completions[1:] + completions[:1]
    pairs = scorer.score(model, PairBatch(prompts, completions, other, range(len(prompts))))
    torch.testing.assert_close(found, pairs.chosen.double(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "computed"),
    [
        # Each prompt once, and of every completion all but its last token.
        ("packed", sum(prompt + sum(sizes) - len(sizes) for prompt, sizes in SAMPLES)),
        ("plain", sum(len(sizes) for _, sizes in SAMPLES) * 11),  # Padded to 5 + 7 - 1.
    ],
)
def test_only_needed_tokens_go_through_the_model(layout: Any, computed: int) -> None:
    model = tiny_llama()
    scorer = PairScorer(model, EngineConfig(layout=layout, tokens_per_microbatch=1000))
    seen: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scorer.score_sequences(model, *some_sequences())
    assert sum(seen) == computed


def test_the_head_is_asked_for_completion_tokens_alone() -> None:
    model = tiny_llama()
    scorer = PairScorer(model, EngineConfig(head_chunk=1000))
    asked: list[int] = []

    class Counting(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            asked.append(len(states))
            return super().forward(states)

    model.lm_head.__class__ = Counting
    prompts, completions = some_sequences()
    scorer.score_sequences(model, prompts, completions)
    assert sum(asked) == sum(map(len, completions))


def test_the_models_mode_gradients_and_forward_are_left_as_they_were() -> None:
    model = tiny_llama().train()
    scores = PairScorer(model).score_sequences(model, *some_sequences())
    assert model.training
    assert not scores.logps.requires_grad
    assert (scores.logps.dtype, str(scores.logps.device)) == (torch.float64, "cpu")
    assert "forward" not in vars(model)


def test_progress_is_told_of_every_sequence_once() -> None:
    model, told = tiny_llama(), []
    prompts, completions = some_sequences()
    scorer = PairScorer(model, EngineConfig(tokens_per_microbatch=8))
    scorer.score_sequences(model, prompts, completions, progress=told.append)
    assert len(told) > 1
    assert sum(told) == len(prompts)
    assert scorer.score_sequences(model, [], []).logps.tolist() == []


@pytest.mark.parametrize(
    ("prompts", "completions", "said"),
    [
        ([[5], []], [[6], [7]], "sequence 1 has 0 prompt tokens and 1 completion tokens"),
        ([[5]], [[]], "sequence 0 has 1 prompt tokens and 0 completion tokens"),
    ],
)
def test_a_sequence_without_a_prompt_or_a_completion_is_refused(
    prompts: list[list[int]], completions: list[list[int]], said: str
) -> None:
    model = tiny_llama()
    with pytest.raises(DataError, match=said):
        PairScorer(model).score_sequences(model, prompts, completions)


ids = st.lists(st.integers(0, 1), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(sequences=st.lists(st.tuples(ids, ids), max_size=12), longest=st.integers(1, 12))
def test_groups_hold_every_sequence_once_with_one_prompt_within_the_budget(
    sequences: list[tuple[list[int], list[int]]], longest: int
) -> None:
    prompts, completions = [p for p, _ in sequences], [c for _, c in sequences]
    groups = group_by_prompt(prompts, completions, longest=longest)
    assert sorted(index for group in groups for index in group) == list(range(len(sequences)))
    for group in groups:
        prompt = prompts[group[0]]
        assert all(prompts[index] == prompt for index in group)
        row = len(prompt) + sum(len(completions[index]) - 1 for index in group)
        assert row <= longest or len(group) == 1
    # A prompt is computed more than once only where all of it would not fit.
    for prompt in prompts:
        mine = [group for group in groups if prompts[group[0]] == prompt]
        row = len(prompt) + sum(len(completions[index]) - 1 for group in mine for index in group)
        assert len(mine) == 1 or row > longest
