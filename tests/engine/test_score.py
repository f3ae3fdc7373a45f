"""Shared-prefix rows against plain rows, and what happens to models that cannot take them."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from dynamic_dpo.engine.capability import detect_capability, inference, largest_excess, reason_against_sharing
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch, plain_rows, shared_rows
from dynamic_dpo.engine.score import attention_mask, completion_lengths, scoring_enabled
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.loss import compute_log_prob
from dynamic_dpo.models.causal_lm import causal_lm
from tiny import VOCAB, random_pairs, tiny_gpt2, tiny_llama, tiny_qwen2

SHARING: dict[str, Callable[..., Any]] = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gpt2": tiny_gpt2}
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def tiny_mamba() -> Any:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SMALL, state_size=4))


def tiny_opt() -> Any:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=16,
        dropout=0.0,
        init_std=0.2,
        max_position_embeddings=64,
    )
    return OPTForCausalLM(config)


def some_pairs(count: int = 6, seed: int = 0) -> PairBatch:
    rows = random_pairs(count, seed=seed)
    return PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], range(count))


def alone(model: Any, pairs: PairBatch) -> torch.Tensor:
    """Each completion behind its own prompt, one unpadded sequence at a time, through the model's own logits."""
    values = []
    for prompt, *completions in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            values.append(compute_log_prob(model(input_ids=ids).logits, labels)[0])
    return torch.stack(values).view(-1, 2)


def with_lora(model: Any, **settings: Any) -> Any:
    torch.manual_seed(5)
    targets = ["c_attn", "c_fc"] if hasattr(model, "transformer") else ["q_proj", "v_proj", "down_proj"]
    targets += settings.pop("extra", [])
    fan = hasattr(model, "transformer")
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=fan, **settings)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)  # zero at birth: without this an adapter would not matter
    return adapted


def scored(scorer: PairScorer, model: Any, pairs: PairBatch) -> torch.Tensor:
    result = scorer.score(model, pairs)
    return torch.stack([result.chosen, result.rejected], dim=1)


def gradients(model: Any, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SHARING)
def test_shared_rows_have_the_log_probabilities_and_gradients_of_sequences_alone(
    name: str, attention: str, lora: bool
) -> None:
    model = SHARING[name](attention=attention)
    bare = alone(model, some_pairs()).detach()
    if lora:
        model = with_lora(model)
    scorer = PairScorer(model, EngineConfig(layout="shared", head_chunk=5))
    ours, expected = scored(scorer, model, some_pairs()), alone(model, some_pairs())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, ours), gradients(model, expected))
    assert torch.allclose(ours, bare, rtol=1e-5) is not lora


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("name", SHARING)
def test_packed_and_plain_rows_have_them_too(name: str, layout: Any, lora: bool) -> None:
    model = with_lora(SHARING[name]()) if lora else SHARING[name]()
    scorer = PairScorer(model, EngineConfig(layout=layout, head_chunk=5))
    assert scorer.layout == layout
    ours, expected = scored(scorer, model, some_pairs()), alone(model, some_pairs())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, ours), gradients(model, expected))


def test_lengths_are_the_completions(caplog: pytest.LogCaptureFixture) -> None:
    model, pairs = tiny_llama(), some_pairs()
    result = PairScorer(model).score(model, pairs)
    assert result.chosen_lengths.tolist() == [len(ids) for ids in pairs.chosen]
    assert result.rejected_lengths.tolist() == [len(ids) for ids in pairs.rejected]
    assert not caplog.records
    assert (
        completion_lengths(shared_rows(pairs)).view(-1, 2)[:, 1].tolist() == result.rejected_lengths.tolist()
    )


def test_a_float64_model_keeps_float64() -> None:
    model = tiny_gpt2().to(torch.float64)
    scorer = PairScorer(model)
    ours = scored(scorer, model, some_pairs())
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, alone(model, some_pairs()), rtol=1e-12, atol=0)


def test_an_adapter_on_the_head_is_not_bypassed() -> None:
    model = with_lora(tiny_llama(), extra=["lm_head"])
    scorer = PairScorer(model, EngineConfig(head_chunk=5))
    assert scorer.layout == "packed"
    ours, expected = scored(scorer, model, some_pairs()), alone(model, some_pairs())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    mine, theirs = gradients(model, ours), gradients(model, expected)
    assert any("lm_head" in name for name in mine)
    assert_same_gradients(mine, theirs)


def test_a_disabled_adapter_is_the_bare_model() -> None:
    bare = alone(tiny_llama(), some_pairs()).detach()
    model = with_lora(tiny_llama())
    scorer = PairScorer(model)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(scored(scorer, model, some_pairs()), bare, rtol=1e-5, atol=0)


CANNOT: dict[str, tuple[Callable[[], Any], str, bool]] = {
    "mamba": (tiny_mamba, "linear_attention", True),
    "a head that adds": (lambda: head_that_adds(tiny_llama()), "output head does more", False),
}


def head_that_adds(model: Any) -> Any:
    """Let the model do to its logits what no setting of its configuration tells."""
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        output.logits = output.logits + torch.linspace(-3, 3, VOCAB)
        return output

    model.forward = forward
    return model


@pytest.mark.parametrize("name", CANNOT)
@pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")
def test_a_model_that_cannot_share_falls_back_and_says_so(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason, separate_head = CANNOT[name]
    model = make()
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        scorer = PairScorer(model)
    assert not scorer.shared
    assert scorer.separate_head is separate_head
    (message,) = [record.getMessage() for record in caplog.records if record.name == "dynamic_dpo"]
    assert "cannot share prefixes" in message
    assert type(model).__name__ in message
    with pytest.raises(ConfigError, match=f"engine.layout is 'shared', but .* cannot share .*{reason}"):
        PairScorer(model, EngineConfig(layout="shared"))
    ours, expected = scored(scorer, model, some_pairs()), alone(model, some_pairs())
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-5)
    assert_same_gradients(gradients(model, ours), gradients(model, expected))


def test_asking_for_plain_rows_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        PairScorer(tiny_mamba(), EngineConfig(layout="plain"))
    assert not caplog.records


def test_a_trial_catches_a_model_whose_configuration_promises_too_much() -> None:
    model = tiny_llama()
    inner = model.model.forward

    def forgets_positions(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    forgets_positions.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    model.model.forward = forgets_positions
    capability = detect_capability(model)
    assert (capability.shared, capability.separate_head) == (False, True)
    assert "in a trial its hidden states differed by" in capability.reason


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("is_encoder_decoder", True, "encoder-decoder"),
        ("_attn_implementation_internal", "flash_attention_2", "'flash_attention_2' takes no block mask"),
    ],
)
def test_a_configuration_can_forbid_sharing(setting: str, value: object, reason: str) -> None:
    model = tiny_llama()
    setattr(model.config, setting, value)
    assert reason in str(reason_against_sharing(model))
    model.config = tiny_llama().config
    assert reason_against_sharing(model) is None


def test_a_projection_between_hidden_state_and_head_is_not_bypassed() -> None:
    model = tiny_opt()
    scorer = PairScorer(model)
    torch.testing.assert_close(
        scored(scorer, model, some_pairs()), alone(model, some_pairs()), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", SHARING)
def test_detection_leaves_mode_gradients_and_buffers_alone(name: str) -> None:
    model = SHARING[name]().train()
    model.base_model.eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    assert detect_capability(model).shared
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_leaving_inference_restores_every_mode_after_an_error_too() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    seen = []

    def fail_inside() -> None:
        with inference(model):
            seen.append((model[0].training, torch.is_grad_enabled()))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert seen == [(False, False)]
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_self_check_passes_on_an_honest_model_and_fails_on_sabotaged_scoring(
    monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    model = tiny_llama()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    scorer.self_check(model, some_pairs(3))
    honest = scorer.rows

    def chosen_seen_by_rejected(pairs: PairBatch) -> Any:
        rows = honest(pairs)
        rows.segments[rows.segments == 2] = 1
        return replace(rows, spans=tuple(span._replace(prompt_end=span.ends[0]) for span in rows.spans))

    monkeypatch.setattr(scorer, "rows", chosen_seen_by_rejected)
    with pytest.raises(ModelError, match=r"self-check failed.*rows \[0, 1, 2\].*engine.layout=plain"):
        scorer.self_check(model, some_pairs(3))


def test_the_self_check_does_not_send_to_plain_rows_who_has_them() -> None:
    model = tiny_mamba()
    scorer = PairScorer(model, EngineConfig(layout="plain"))

    def sees_padding(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0] * (1 + output[0].shape[1] % 7)
        return output

    model.backbone.register_forward_hook(sees_padding, with_kwargs=True)
    with pytest.raises(
        ModelError, match=r"self-check failed: plain rows and each sequence alone.*see the padding"
    ):
        scorer.self_check(model, some_pairs(3))


def test_agreement_is_rounding_and_not_more() -> None:
    oracle, tokens = torch.tensor([-100.0, -50.0]), torch.tensor([25, 9])

    def excess(values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
        return largest_excess(values, expected, num_tokens=tokens, dtype=dtype)

    assert excess(oracle + 0.002, oracle, torch.float32) <= 0
    assert excess(oracle + 0.02, oracle, torch.float32) > 0
    assert excess(oracle + 0.7, oracle, torch.bfloat16) <= 0
    assert excess(oracle + 1.5, oracle, torch.bfloat16) > 0
    nan = torch.full((2,), torch.nan)
    assert excess(nan, oracle, torch.float32) == torch.inf
    assert excess(nan, nan, torch.float32) <= 0


def test_eager_attention_gets_an_additive_mask_and_sdpa_a_boolean_one() -> None:
    rows, plain = shared_rows(some_pairs(2)), plain_rows(some_pairs(2))
    eager, sdpa = (attention_mask(rows, tiny_llama(attention=name)) for name in ("eager", "sdpa"))
    assert sdpa.dtype == torch.bool
    assert eager.dtype == torch.float32
    assert torch.equal(eager == 0, sdpa)
    assert eager[~sdpa].unique().tolist() == [torch.finfo(torch.float32).min]
    assert attention_mask(plain, tiny_llama()).shape == plain.input_ids.shape


def test_the_model_scores_rows_and_still_answers_as_before() -> None:
    model = tiny_llama()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    with scoring_enabled(model, lambda _, rows: {"logps": torch.zeros(rows.num_sequences)}):
        assert torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model(rows=shared_rows(some_pairs(2)))["logps"], torch.zeros(4))
        # The trainer above reads the signature to learn what the model takes.
        assert list(inspect.signature(model.forward).parameters) == list(
            inspect.signature(tiny_llama().forward).parameters
        )


def answer(number: float) -> Callable[..., dict[str, torch.Tensor]]:
    return lambda model, rows: {"logps": torch.tensor(number)}


def test_after_scoring_a_models_forward_is_what_it_was_after_an_exception_too() -> None:
    model, patched = tiny_llama(), tiny_llama()
    patched.forward = own = MethodType(lambda self, **kwargs: "patched by somebody else", patched)

    def fail_inside(one: Any) -> None:
        with scoring_enabled(one, answer(1)):
            assert float(one(rows=None)["logps"]) == 1
            raise RuntimeError("inside")

    for one in (model, patched):
        with pytest.raises(RuntimeError, match="inside"):
            fail_inside(one)
    assert "forward" not in vars(model)
    assert vars(patched)["forward"] is own
    with scoring_enabled(patched, answer(1)):
        assert patched(input_ids=None) == "patched by somebody else"


def test_scorings_nest_and_each_gives_way_to_the_one_before() -> None:
    model = tiny_llama()
    with scoring_enabled(model, answer(1)):
        with scoring_enabled(model, answer(2)):
            assert float(model(rows=None)["logps"]) == 2
        assert float(model(rows=None)["logps"]) == 1
    assert "forward" not in vars(model)


def test_what_was_wrapped_around_the_forward_meanwhile_stays_and_calls_the_models_own() -> None:
    model, ids = tiny_llama(), torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    calls = []
    with scoring_enabled(model, answer(1)):
        inner = model.forward

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(list(kwargs))
            return inner(*args, **kwargs)

        model.forward = MethodType(counted, model)
        assert float(model(rows=None)["logps"]) == 1
    assert torch.equal(model(input_ids=ids).logits, before)
    assert calls == [["rows"], ["input_ids"]]
    with scoring_enabled(model, answer(2)):
        assert float(model(rows=None)["logps"]) == 2


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_scorer_leaves_the_models_forward_alone_between_calls(lora: bool) -> None:
    model = with_lora(tiny_llama()) if lora else tiny_llama()
    wrapped = nn.Module()
    wrapped.module = model
    wrapped.forward = model.__call__  # type: ignore[method-assign]
    scorer = PairScorer(model)
    once = scored(scorer, wrapped, some_pairs(2))
    assert "forward" not in vars(model)
    with scorer.answering(wrapped):
        installed = vars(model)["forward"]
        assert torch.equal(scored(scorer, model, some_pairs(2)), once)
        assert vars(model)["forward"] is installed
    assert "forward" not in vars(model)


def test_a_copy_of_a_scoring_model_answers_with_its_own_weights() -> None:
    model = tiny_llama()
    scorer = PairScorer(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
        logits = twin(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert not logits.any()
        assert scored(scorer, model, some_pairs(2)).abs().max() > 1
        uniform = scored(scorer, twin, some_pairs(2))
    lengths = completion_lengths(shared_rows(some_pairs(2))).view(-1, 2)
    torch.testing.assert_close(uniform, -lengths * torch.log(torch.tensor(float(VOCAB))))


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no output head"):
        causal_lm(nn.Linear(2, 2))
    model = tiny_llama()
    wrapped = nn.Module()
    wrapped.module = model
    assert causal_lm(wrapped) is model


def test_prompt_learning_adapters_are_refused() -> None:
    from peft import PromptTuningConfig

    model = get_peft_model(tiny_llama(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="prompt-learning adapters"):
        causal_lm(model)


@pytest.mark.parametrize(
    ("setting", "value"), [("layout", "sideways"), ("tokens_per_microbatch", 0), ("head_chunk", 0)]
)
def test_engine_settings_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .*{value}"):
        EngineConfig(**{setting: value})  # type: ignore[arg-type]
