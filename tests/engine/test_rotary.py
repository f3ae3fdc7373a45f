"""Rotary embeddings that go by a sequence's length: a row's numbers are its own, whatever lies beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rotary import fixed_length
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.loss import compute_log_prob
from tiny import VOCAB, tiny_llama

ORIGINAL = 16
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def dynamic_llama() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    return LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=ORIGINAL, rope_parameters=rope))


def long_phi3() -> Any:
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": ORIGINAL,
    }
    return Phi3ForCausalLM(
        Phi3Config(
            **SMALL,
            sliding_window=None,
            max_position_embeddings=64,
            original_max_position_embeddings=ORIGINAL,
            rope_parameters=rope,
        )
    )


MODELS = {"dynamic": dynamic_llama, "longrope": long_phi3}
# Prompt, chosen, rejected: short, long, one of each, at the edge, and short again after all of them.
SIZES = [(4, 5, 6), (12, 14, 20), (9, 5, 25), (9, 25, 5), (10, 7, 7), (8, 9, 10), (3, 4, 5)]


def some_pairs() -> PairBatch:
    draw = random.Random(2)

    def ids(count: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(count)]

    prompts, chosen, rejected = zip(*([ids(n) for n in size] for size in SIZES), strict=True)
    return PairBatch(prompts, chosen, rejected, range(len(SIZES)))


def alone(make: Any, pairs: PairBatch) -> torch.Tensor:
    """Each sequence through a model that has seen no other. Shape [B, 2]."""
    values = []
    for prompt, completions in zip(pairs.prompts, pairs.completions, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            # Without the last token, which nothing is predicted from: it does not make a sequence longer.
            logits = make()(input_ids=ids[:, :-1]).logits
            values.append(compute_log_prob(torch.cat([logits, logits[:, -1:]], 1), labels)[0])
    return torch.stack(values).view(-1, 2)


@pytest.mark.parametrize("layout", ["auto", "packed", "shared", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_each_sequence_is_scored_as_if_alone(name: str, layout: Any) -> None:
    make, pairs = MODELS[name], some_pairs()
    expected = alone(make, pairs)
    model = make()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    assert fixed_length(model) == ORIGINAL
    together = scorer.score(model, pairs)
    torch.testing.assert_close(torch.stack(together[:2], 1), expected, rtol=1e-5, atol=1e-5)
    for part in scorer.plan(pairs):
        scored = torch.stack(scorer.score(model, pairs.select(part))[:2], 1)
        torch.testing.assert_close(scored, expected[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_factors_of_long_sequences_matter_in_this_test(name: str) -> None:
    make, pairs = MODELS[name], some_pairs().select([1])
    model = make()
    for module in model.modules():
        if hasattr(module, "rope_type"):
            module.rope_type = "default"
    assert (alone(lambda: model, pairs) - alone(make, pairs)).abs().max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_short_sequences_share_rows_and_long_ones_do_not(name: str) -> None:
    model, pairs = MODELS[name](), some_pairs()
    scorer = PairScorer(model)
    assert scorer.layout == "packed"
    packed = {index for part in scorer.plan(pairs) for index in part if scorer.rows(pairs.select(part)).spans}
    assert packed == {0, 4, 6}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_each_sequence_alone(name: str) -> None:
    make, pairs = MODELS[name], some_pairs()
    weights = torch.linspace(-1, 1, 2 * len(pairs)).view(-1, 2)
    model, other = make(), make()
    (torch.stack(PairScorer(model).score(model, pairs)[:2], 1) * weights).sum().backward()
    PairScorer(other)  # Its embeddings by row, so that one model can take all sequences in turn.
    (alone(lambda: other, pairs) * weights).sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


def test_ordinary_models_are_left_alone() -> None:
    model = tiny_llama()
    assert fixed_length(model) is None
    PairScorer(model)
    assert "forward" not in vars(model.model.rotary_emb)
