"""Packed rows: no padding, every prompt with its answers by itself."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dynamic_dpo.engine.attention import PACKED_ATTENTION
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.plan import plan_microbatches
from dynamic_dpo.engine.rows import (
    PADDING,
    PairBatch,
    packed_rows,
    row_lengths,
    shared_rows,
)
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.engine.token_budget import activation_bytes, default_token_budget, device_memory
from dynamic_dpo.errors import ConfigError
from tiny import VOCAB, tiny_gpt2, tiny_llama

# Prompt, chosen and rejected lengths; a rejected answer of one token leaves no position of its own.
SIZES = [(3, 4, 5), (1, 1, 1), (7, 1, 6), (2, 9, 1), (20, 15, 30)]


def some_pairs() -> PairBatch:
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(count)]

    prompts, chosen, rejected = zip(*([ids(n) for n in size] for size in SIZES), strict=True)
    return PairBatch(prompts, chosen, rejected, range(len(SIZES)))


def test_packed_rows_are_the_shared_rows_without_their_padding() -> None:
    pairs = some_pairs()
    packed, padded = packed_rows(pairs), shared_rows(pairs)
    real = padded.segments != PADDING
    assert packed.input_ids.numel() == sum(p + c + r - 2 for p, c, r in SIZES) == int(real.sum())
    assert torch.equal(packed.input_ids[0], padded.input_ids[real])
    assert torch.equal(packed.position_ids[0], padded.position_ids[real])
    at_packed = packed.input_ids.flatten()[packed.predictors]
    assert torch.equal(at_packed, padded.input_ids.flatten()[padded.predictors])
    assert [span.end - span.start for span in packed.spans] == row_lengths(pairs, shared=True)


def test_what_stands_in_other_pairs_changes_nothing() -> None:
    model, pairs = tiny_llama(), some_pairs()
    scorer = PairScorer(model)
    together = scorer.score(model, pairs)
    for i in range(len(pairs)):
        alone = scorer.score(model, pairs.select([i]))
        torch.testing.assert_close(together.chosen[i], alone.chosen[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.rejected[i], alone.rejected[0], rtol=1e-5, atol=1e-5)


def test_a_model_with_packed_attention_answers_other_calls_as_before() -> None:
    model = tiny_llama()
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = (ids != 0).long()
    before = model(input_ids=ids, attention_mask=mask).logits
    PairScorer(model)
    assert model.config._attn_implementation == PACKED_ATTENTION
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_a_saved_model_knows_nothing_of_packed_attention(tmp_path: Any) -> None:
    model = tiny_llama()
    PairScorer(model)
    model.save_pretrained(tmp_path)
    assert PACKED_ATTENTION not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    assert copy.deepcopy(model).config._attn_implementation == PACKED_ATTENTION


def test_gradient_checkpointing_recomputes_packed_rows() -> None:
    model, pairs = tiny_llama(), some_pairs()
    scorer = PairScorer(model)
    scorer.score(model, pairs).chosen.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable()
    scorer.score(model, pairs).chosen.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_attention_that_was_chosen_on_purpose_stays() -> None:
    model = tiny_llama(attention="eager")
    assert PairScorer(model).layout == "shared"
    assert model.config._attn_implementation == "eager"


def test_attention_dropout_keeps_rows_padded_and_packing_is_refused_with_the_reason() -> None:
    model = tiny_llama()
    model.config.attention_dropout = 0.1
    assert PairScorer(model).layout == "shared"
    with pytest.raises(ConfigError, match=r"'packed', but LlamaForCausalLM cannot take packed .* dropout"):
        PairScorer(model, EngineConfig(layout="packed"))


def test_packed_pairs_fill_micro_batches_to_the_budget() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(5, 400) for _ in range(64)]
    plan = plan_microbatches(lengths, 1024, padded=False)
    assert sorted(index for part in plan for index in part) == list(range(64))
    sizes = [sum(lengths[i] for i in part) for part in plan]
    assert max(sizes) <= 1024
    assert len(plan) <= -(-sum(lengths) // 1024) + 1
    assert plan_microbatches([2000, 10], 1024, padded=False) == [[0], [1]]


def test_packed_pairs_fill_micro_batches_evenly_and_none_further_than_before() -> None:
    # First come, first served this would be 10 + 9 + 9 and a lonely 4.
    plan = plan_microbatches([6, 5, 5, 4, 4, 4, 4], 11, padded=False)
    assert [sum([6, 5, 5, 4, 4, 4, 4][i] for i in part) for part in plan] == [6, 9, 9, 8]
    draw = random.Random(1)
    for _ in range(200):
        lengths = [draw.randint(1, 300) for _ in range(draw.randint(1, 40))]
        budget = draw.randint(50, 1500)
        plan = plan_microbatches(lengths, budget, padded=False)
        assert sorted(index for part in plan for index in part) == list(range(len(lengths)))
        assert max(sum(lengths[i] for i in part) for part in plan) <= max(budget, *lengths, 0)


def test_the_budget_follows_memory_and_never_what_is_free() -> None:
    model = tiny_gpt2()
    # 2 layers × (16 × 32 + 5 × 128) values of 4 bytes.
    assert activation_bytes(model) == 2 * (16 * 32 + 5 * 128) * 4
    fixed = sum(p.numel() for p in model.parameters()) * 16
    assert default_token_budget(model, memory=10**12) == 768
    assert default_token_budget(model, memory=0) == 256
    room = int((fixed + 600 * activation_bytes(model)) / 0.6) + 1
    assert default_token_budget(model, memory=room) == 512
    assert device_memory(torch.device("cpu")) > 2**28


def test_recomputing_activations_leaves_room_for_more_tokens() -> None:
    torch.manual_seed(0)
    deep = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=24, num_attention_heads=2
        )
    )
    assert activation_bytes(deep, recomputes=True) < activation_bytes(deep) / 10
