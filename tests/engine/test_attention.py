"""Packed attention in models of transformers: they answer as in the plain layout, or are refused with the reason."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from dynamic_dpo.engine import attention
from dynamic_dpo.engine.attention import PACKED_ATTENTION, _attention_forward
from dynamic_dpo.engine.packed.flex import GRAPHS_PER_KERNEL, flex_packed_attention
from dynamic_dpo.engine.rows import PairBatch, PromptSpan, Rows, packed_rows, plain_rows
from dynamic_dpo.engine.score import attention_mask
from helpers_attention import FLEX_WARNINGS, largest_error, no_compiler
from tiny import VOCAB

# Longer than every window below, in the prompt, in the first completion and in the second.
SIZES = [(3, 4, 5), (1, 9, 1), (7, 1, 6), (14, 15, 20)]
WINDOW = 6

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
ALTERNATING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 8,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
DEEPSEEK = MLA | EXPERTS | {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("Llama", {}),
    "a window in every layer": ("Mistral", {"sliding_window": WINDOW}),
    "a window in every layer, one projection": ("Phi3", {"sliding_window": WINDOW}),
    "some layers with a window": ("Qwen2", ALTERNATING | {"use_sliding_window": True}),
    "a window that only the mask has": (
        "Qwen2Moe",
        ALTERNATING | {"use_sliding_window": True, "num_experts": 4},
    ),
    "caps and alternating windows": ("Gemma2", ALTERNATING | {"attn_logit_softcapping": 2.0}),
    "a norm before, alternating windows": ("Gemma3Text", ALTERNATING),
    "alternating windows, two embeddings of position": ("Olmo3", ALTERNATING),
    "sinks and alternating windows": (
        "GptOss",
        ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "narrow values": ("DeepseekV3", DEEPSEEK),
    "narrow values, without a bias of choice": ("DeepseekV2", DEEPSEEK),
}


def tiny(family: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**COMMON | settings)
    name = "Gemma3" if family == "Gemma3Text" else family
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):  # They begin as zeros, or as whatever was in memory.
            torch.nn.init.normal_(parameter)
    return model


def pairs(sizes: Sequence[tuple[int, int, int]] = SIZES) -> PairBatch:
    """Prompts, chosen and rejected completions of so many tokens."""
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(count)]

    prompts, chosen, rejected = zip(*([ids(n) for n in size] for size in sizes), strict=True)
    return PairBatch(prompts, chosen, rejected, range(len(sizes)))


def logps(model: Any, rows: Rows) -> Tensor:
    """The log-probability of every completion."""
    inputs = {"position_ids": rows.position_ids, "spans": rows.spans} if rows.spans else {}
    states = model.base_model(
        rows.input_ids, attention_mask=attention_mask(rows, model), use_cache=False, **inputs
    )[0]
    logits = model.lm_head(states.flatten(0, 1)[rows.predictors])
    tokens = logits.log_softmax(-1).gather(1, rows.targets[:, None])[:, 0]
    return torch.zeros(rows.num_sequences).index_add(0, rows.owners, tokens)


def logps_and_gradients(model: Any, rows: Rows) -> list[Tensor]:
    """The log-probability of every completion, and the gradients of a weighted sum of them."""
    model.zero_grad()
    sums = logps(model, rows)
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return [
        sums.detach(),
        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize(("family", "settings"), FAMILIES.values(), ids=FAMILIES)
def test_packed_rows_give_what_plain_rows_give(family: str, settings: dict[str, Any]) -> None:
    model = tiny(family, settings)
    plain = logps_and_gradients(model, plain_rows(pairs()))
    model.set_attn_implementation(PACKED_ATTENTION)
    packed = logps_and_gradients(model, packed_rows(pairs()))
    assert len(packed) == len(plain) > 10
    assert largest_error(packed, plain) < 1e-5


def through_flex(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    """Let models on the CPU compute packed rows as a GPU would."""

    def attend(*parts: Tensor, **rule: Any) -> Tensor:
        return flex_packed_attention(*parts, backend=backend, **rule).transpose(1, 2)

    torch._dynamo.reset()
    monkeypatch.setattr(attention, "packed_attention", attend)


@pytest.mark.filterwarnings(*FLEX_WARNINGS)
@pytest.mark.parametrize(
    "name",
    [
        "grouped heads",
        "a window in every layer",
        "caps and alternating windows",
        "sinks and alternating windows",
        "narrow values",
    ],
)
def test_through_flex_attention_they_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through_flex(monkeypatch, None)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    model = tiny(*FAMILIES[name])
    plain = logps_and_gradients(model, plain_rows(pairs()))
    model.set_attn_implementation(PACKED_ATTENTION)
    assert largest_error(logps_and_gradients(model, packed_rows(pairs())), plain) < 1e-5


@no_compiler
@pytest.mark.filterwarnings(*FLEX_WARNINGS)
def test_compiled_by_inductor_caps_windows_and_grouped_heads_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through_flex(monkeypatch, "inductor")
    model = tiny(*FAMILIES["caps and alternating windows"])
    with torch.no_grad():
        plain = logps(model, plain_rows(pairs()))
        model.set_attn_implementation(PACKED_ATTENTION)
        packed = logps(model, packed_rows(pairs()))
    assert largest_error([packed], [plain]) < 1e-5


@pytest.mark.filterwarnings(*FLEX_WARNINGS)
def test_a_model_is_compiled_twice_for_fifty_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with gradients and once without, though its layers have windows and none, caps and grouped heads."""
    through_flex(monkeypatch, "aot_eager")
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    counters.clear()
    model = tiny(*FAMILIES["caps and alternating windows"])
    model.set_attn_implementation(PACKED_ATTENTION)
    draw = random.Random(0)
    lengths: set[int] = set()
    while len(lengths) < 50:
        sizes = [
            (draw.randint(1, 60), draw.randint(1, 40), draw.randint(1, 40)) for _ in range(draw.randint(1, 4))
        ]
        rows = packed_rows(pairs(sizes))
        lengths.add(rows.input_ids.numel())
        trained = logps_and_gradients(model, rows)
        with torch.no_grad():
            torch.testing.assert_close(logps(model, rows), trained[0], rtol=1e-5, atol=1e-4)
    assert min(lengths) < 128 < 256 < max(lengths)
    assert counters["stats"]["unique_graphs"] == GRAPHS_PER_KERNEL == 2


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "GptOss"])
def test_what_makes_a_family_special_is_felt(family: str) -> None:
    """Without its window, cap or sinks the same model gives other numbers: the comparison above would see it."""
    settings = next(settings for name, settings in FAMILIES.values() if name == family)
    without = {"Mistral": {"sliding_window": 1000}, "Gemma2": {"attn_logit_softcapping": None}, "GptOss": {}}[
        family
    ]
    one, other = tiny(family, settings), tiny(family, settings | without)
    if family == "GptOss":
        for layer in other.model.layers:
            torch.nn.init.constant_(layer.self_attn.sinks, -1e9)
    sums = [logps_and_gradients(model, plain_rows(pairs()))[0] for model in (one, other)]
    assert largest_error(*([values] for values in sums)) > 1e-4


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "GptOss"])
@pytest.mark.parametrize("padded", [False, True], ids=["as they are", "padded"])
def test_calls_without_spans_are_answered_as_before(family: str, padded: bool) -> None:
    settings = next(settings for name, settings in FAMILIES.values() if name == family)
    model = tiny(family, settings)
    ids = torch.arange(4, 28).view(2, 12)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0

    def answers() -> tuple[Tensor, Tensor]:
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
        return logits, model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)

    before = answers()
    model.set_attn_implementation(PACKED_ATTENTION)
    after = answers()
    torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(after[1], before[1])


SPANS = (PromptSpan(0, 3, (5, 6)),)


def call(module: dict[str, Any] | None = None, **options: Any) -> tuple[Tensor, None]:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 2, options.pop("length", 6), 4, generator=generator) for _ in range(3)]
    layer = SimpleNamespace(
        **{"is_causal": True, "config": SimpleNamespace(), "layer_idx": 1} | (module or {})
    )
    mask = options.pop("mask", torch.ones(1, 1, 1, 1, dtype=torch.bool))
    return _attention_forward(layer, *parts, mask, spans=SPANS, **options)


def layer_of(kind: str | None, window: int | None) -> dict[str, Any]:
    kinds = {} if kind is None else {"layer_types": ["full_attention", kind]}
    return {"config": SimpleNamespace(sliding_window=window, **kinds)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"position_bias": torch.zeros(1)},
            "does not know what to do with position_bias, which SimpleNamespace",
        ),
        ({"indices": torch.zeros(1), "novelty": 2}, "does not know what to do with indices, novelty"),
        ({"output_attentions": True}, "does not know what to do with output_attentions"),
        ({"dropout": 0.1}, "has no dropout"),
        ({"is_causal": False}, "is causal, and SimpleNamespace is not"),
        ({"module": {"is_causal": False}}, "is causal, and SimpleNamespace is not"),
        ({"mask": torch.zeros(1, 1, 6, 6)}, r"gave a mask of shape \[1, 1, 6, 6\] beside them"),
        ({"length": 7}, r"one row of 6 queries .* gave queries \[1, 2, 7, 4\]"),
        ({"sliding_window": 0}, "must hold 1 token or more, and SimpleNamespace passed 0"),
        ({"module": layer_of("chunked_attention", None)}, "is of type 'chunked_attention'"),
        ({"module": layer_of(None, 4)}, "passes no window though its configuration has sliding_window=4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_packed_attention_cannot_do_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        call(**arguments)
    assert "engine.layout=plain" in str(refusal.value) or "set attention_dropout to 0" in str(refusal.value)


def test_a_model_that_loses_the_spans_on_the_way_is_refused() -> None:
    """Without them its rows would attend to everything."""
    model = tiny("StableLm", {})
    model.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(ValueError, match=r"did not reach StableLmAttention.* engine\.layout=plain"):
        logps(model, packed_rows(pairs()))


def test_what_changes_nothing_is_let_pass() -> None:
    plain = call()[0]
    options = {
        "position_ids": torch.zeros(1),
        "use_cache": True,
        "output_attentions": False,
        "position_bias": None,
    }
    assert torch.equal(call(**options)[0], plain)
    assert torch.equal(call(dropout=0.0, is_causal=True, mask=None)[0], plain)


def test_a_window_is_found_where_the_layer_does_not_pass_it() -> None:
    narrow = call(sliding_window=2)[0]
    assert not torch.equal(narrow, call()[0])
    assert torch.equal(call(module=layer_of("sliding_attention", 2))[0], narrow)
    assert torch.equal(call(module=layer_of("full_attention", 2))[0], call()[0])
    # MiniMax calls its layers full and passes a window, as its mask has it.
    assert torch.equal(call(module=layer_of("full_attention", 2), sliding_window=2)[0], narrow)
