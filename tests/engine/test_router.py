"""The balancing loss of experts: what transformers computes, prompts counted once, only where it is asked for."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.router import router_loss_of
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from tiny import VOCAB, tiny_llama


def tiny_mixtral(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(
        MixtralConfig(**sizes, **heads, **{"initializer_range": 0.2, "sliding_window": None, **settings})
    )


# Two pairs of one prompt token and equal lengths: rows without padding.
PAIRS = PairBatch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], [[15, 16], [17, 18, 19]], [0, 1])


def balancing_loss(model: Any, positions: list[torch.Tensor]) -> torch.Tensor:
    """Switch Transformer, equations 4 to 6, from the probabilities of all counted positions of all layers."""
    probabilities = torch.cat([layer.softmax(-1) for layer in positions])
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2).indices, 1.0)
    return 4 * (chosen.mean(0) * probabilities.mean(0)).sum()


@pytest.mark.parametrize("layout", ["packed", "shared", "plain"])
def test_the_loss_counts_every_position_of_the_rows_and_no_padding(layout: Any) -> None:
    model = tiny_mixtral()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    scorer.router = router_loss_of(model)
    scored = scorer.score(model, PAIRS).router_loss
    assert scored is not None
    # Each sequence alone, its last token left out; where completions share a row, the second one's prompt is too.
    layers: list[list[torch.Tensor]] = [[], []]
    for prompt, completions in zip(PAIRS.prompts, PAIRS.completions, strict=True):
        for number, completion in enumerate(completions):
            output = model(input_ids=torch.tensor([[*prompt, *completion[:-1]]]), output_router_logits=True)
            first = len(prompt) if number and layout != "plain" else 0
            for seen, logits in zip(layers, output.router_logits, strict=True):
                seen.append(logits[first:])
    torch.testing.assert_close(
        scored, balancing_loss(model, [torch.cat(seen) for seen in layers]), rtol=1e-5, atol=0
    )
    (gradient,) = torch.autograd.grad(scored, [model.model.layers[0].mlp.gate.weight])
    assert gradient.abs().max() > 0


def test_without_gradients_there_is_no_loss() -> None:
    model = tiny_mixtral()
    scorer = PairScorer(model)
    scorer.router = router_loss_of(model)
    with torch.no_grad():
        assert scorer.score(model, PAIRS).router_loss is None


def test_whether_the_loss_is_added_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dynamic_dpo"):
        added = router_loss_of(tiny_mixtral(router_aux_loss_coef=0.25))
        assert added is not None
        assert (added.coefficient, added.num_experts, added.top_k) == (0.25, 4, 2)
        assert router_loss_of(tiny_mixtral(), coefficient=0.5) == added._replace(coefficient=0.5)
        assert router_loss_of(tiny_mixtral(router_aux_loss_coef=0.0)) is None
        assert router_loss_of(tiny_llama()) is None
    messages = [record.getMessage() for record in caplog.records]
    assert "0.25 times the balancing loss of its router is added" in messages[0]
    assert "no balancing loss of its router, for router_aux_loss_coef is 0" in messages[2]
    assert len(messages) == 3
