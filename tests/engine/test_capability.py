"""What the trials find: heads that scale and cap, windows, memory that runs out, and what they leave as it was."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from dynamic_dpo.engine.capability import detect_capability
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.head import LogitTransform
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.engine.trial import candidate_transforms, trial_pairs
from dynamic_dpo.errors import ModelError
from dynamic_dpo.loss import compute_log_prob
from tiny import VOCAB, random_pairs, tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def tiny(model: Any, config: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return model._from_config(config(**SMALL | settings))


def tiny_mistral(window: int | None) -> Any:
    return tiny(MistralForCausalLM, MistralConfig, head_dim=8, sliding_window=window)


def some_pairs(count: int = 6, longest: int = 12) -> PairBatch:
    rows = random_pairs(count, longest=longest)
    return PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], range(count))


def alone(model: Any, pairs: PairBatch) -> torch.Tensor:
    """Each completion behind its own prompt, one unpadded sequence at a time, through the model's own logits."""
    values = []
    for prompt, completions in zip(pairs.prompts, pairs.completions, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            values.append(compute_log_prob(model(input_ids=ids).logits, labels)[0])
    return torch.stack(values)


def assert_scored_as_alone(model: Any, scorer: PairScorer, pairs: PairBatch) -> None:
    """Compare log-probabilities, and the gradient of a weighted sum of them, with each sequence alone."""
    weights = torch.linspace(-1, 1, 2 * len(pairs))
    results = []
    for score in (lambda: scorer.score(model, pairs), lambda: alone(model, pairs)):
        model.zero_grad()
        values = score()
        values = values if isinstance(values, torch.Tensor) else torch.stack(values[:2], 1).flatten()
        (values * weights).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((values.detach(), gradients))
    (ours, our_gradient), (expected, gradient) = results
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (our_gradient - gradient).norm() < 1e-5 * gradient.norm()


HEADS = {
    "cohere multiplies": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}, LogitTransform(0.25)),
    "granite divides": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}, LogitTransform(1 / 8)),
    "the same name multiplies": (
        HyperCLOVAXForCausalLM,
        HyperCLOVAXConfig,
        {"logits_scaling": 8.0},
        LogitTransform(8.0),
    ),
    "gemma caps": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 50.0, "head_dim": 8},
        LogitTransform(cap=3.0),
    ),
    # A small random model's logits are so far below it that the cap shows only where the trial makes them large.
    "gemma caps far away": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"final_logit_softcapping": 4000.0, "initializer_range": 0.02, "head_dim": 8},
        LogitTransform(cap=4000.0),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_scales_or_caps_goes_through_the_chunked_head(name: str) -> None:
    kind, config, settings, transform = HEADS[name]
    model = tiny(kind, config, **settings)
    scorer = PairScorer(model, EngineConfig(head_chunk=5))
    assert scorer.separate_head
    assert scorer.layout != "plain"
    assert scorer.transform == transform
    assert_scored_as_alone(model, scorer, some_pairs())


def test_a_setting_that_the_model_does_not_follow_is_found_out() -> None:
    model = tiny_llama()
    model.config.final_logit_softcapping = 2.0
    assert detect_capability(model).transform == LogitTransform()


def test_candidates_are_each_factor_and_its_inverse_with_each_cap() -> None:
    found = candidate_transforms({"logit_scale": 0.5, "final_logit_softcapping": 30.0})
    assert found == [LogitTransform(scale, cap) for scale in (1.0, 0.5, 2.0) for cap in (None, 30.0)]


@pytest.mark.parametrize("layout", ["packed", "shared", "plain"])
@pytest.mark.parametrize("window", [4, 18, 64])
def test_sequences_beyond_a_window_are_scored_as_alone_in_every_layout(layout: Any, window: int) -> None:
    model, pairs = tiny_mistral(window), some_pairs()
    lengths = [
        len(p) + max(len(c), len(r))
        for p, c, r in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ]
    assert min(lengths) < 18 < max(lengths) < 64
    scorer = PairScorer(model, EngineConfig(layout=layout))
    for part in scorer.plan(pairs):
        assert_scored_as_alone(model, scorer, pairs.select(part))
    assert_scored_as_alone(model, scorer, pairs)


def test_masks_that_windows_are_not_in_limit_shared_rows_to_the_window() -> None:
    capability = detect_capability(tiny_mistral(18))
    assert capability.shared
    assert capability.longest_shared == 18
    assert detect_capability(tiny_mistral(None)).longest_shared is None


def test_micro_batches_do_not_mix_sequences_that_share_rows_with_those_that_must_not() -> None:
    model, pairs = tiny_mistral(18), some_pairs(12)
    scorer = PairScorer(model, EngineConfig(layout="shared", tokens_per_microbatch=60))
    plan = scorer.plan(pairs)
    assert sorted(index for part in plan for index in part) == list(range(12))
    kinds = [{scorer.rows(pairs.select([index])).shared for index in part} for part in plan]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds
    assert {False} in kinds
    assert len(scorer.plan(pairs, at_least=9)) == 9


def test_the_trial_leaves_random_state_gradients_and_windows_alone() -> None:
    model = tiny_mistral(18).train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    detect_capability(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.sliding_window == 18
    assert model.training


def test_the_trial_runs_in_the_arithmetic_of_training() -> None:
    model = tiny_llama()
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        capability = detect_capability(model)
    assert set(seen) == {torch.bfloat16}
    assert capability.packed


def test_gradients_that_differ_are_found_where_values_agree() -> None:
    model = tiny_llama()
    inner = model.model.forward

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if kwargs.get("spans"):
            states = output.last_hidden_state
            output["last_hidden_state"] = states.detach() + 0.5 * (states - states.detach())
        return output

    cut_off.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    model.model.forward = cut_off
    capability = detect_capability(model)
    assert not capability.packed
    assert "its gradients differed by 5.0e-01" in capability.reason_against_packing


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_no_reason_against_a_layout(error: RuntimeError) -> None:
    model = tiny_llama()
    layer = model.model.layers[0].self_attn

    def run_out(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("spans"):
            raise error

    layer.register_forward_pre_hook(run_out, with_kwargs=True)
    with pytest.raises(type(error), match="memory"):
        detect_capability(model)
    assert model.config._attn_implementation == "sdpa"


def test_what_a_layer_raises_is_kept_as_the_reason() -> None:
    model = tiny_llama()

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("spans"):
            raise ValueError("no packed rows here")

    model.model.layers[1].self_attn.register_forward_pre_hook(refuse, with_kwargs=True)
    capability = detect_capability(model)
    assert (capability.shared, capability.packed) == (True, False)
    assert capability.reason_against_packing == "in a trial its layers raised ValueError: no packed rows here"


def test_tokens_of_the_trial_are_ordinary_ones() -> None:
    config = tiny_llama().config
    config.image_token_id = 7
    pairs = trial_pairs(config)
    used = {token for part in (*pairs.prompts, *pairs.chosen, *pairs.rejected) for token in part}
    assert not used & {0, 1, 2, 7}
    assert max(used) < VOCAB


def test_a_model_that_sees_the_future_is_refused() -> None:
    settings = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    for decoder in (True, False):
        torch.manual_seed(0)
        model = BertLMHeadModel(
            BertConfig(**settings, num_attention_heads=4, initializer_range=0.2, is_decoder=decoder)
        )
        if decoder:
            assert detect_capability(model).separate_head is False
        else:
            with pytest.raises(
                ModelError, match="BertLMHeadModel is no causal language model as it is configured"
            ):
                detect_capability(model)
