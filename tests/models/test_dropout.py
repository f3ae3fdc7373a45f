"""With dropout off a model answers in training mode as in evaluation mode, wherever it keeps its dropout."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from dynamic_dpo.models.dropout import ConfiguredDropout, largest_dropout, switch_off_dropout
from tiny import VOCAB, tiny_llama

# By module (GPT-2), by function (OPT, Bart, Seed-OSS, GPT-BigCode, BioGPT), layers left out (OPT, Bart, BioGPT), by
# the configuration while computing (Falcon), in a nested configuration (MPT), as noise of a router (Mixtral, DBRX).
FAMILIES = (
    *(
        "bart",
        "biogpt",
        "bloom",
        "codegen",
        "ctrl",
        "dbrx",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
    ),
    *("gptj", "minimax_m2", "mixtral", "mpt", "openai-gpt", "opt", "persimmon", "phi", "qwen2", "seed_oss"),
    *("stablelm", "starcoder2", "trocr", "xglm"),
)
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embed_dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "n_inner"), 48
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 3
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("encoder_attention_heads", "num_local_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "vocab_size": VOCAB,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "is_decoder": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
}


def rates_of(config: Any) -> dict[str, float]:
    """Every field that names dropout or noise, with a value that differs from field to field."""
    names = [
        name
        for name, value in vars(config).items()
        if re.search("drop|jitter", name) and type(value) in (int, float, type(None))
    ]
    return {name: 0.2 + 0.01 * number for number, name in enumerate(sorted(names))}


def with_dropout(family: str) -> Any:
    """A tiny model of a family, all of whose dropout is on."""
    default = CONFIG_MAPPING[family]()
    known = {name: size for name, size in SIZES.items() if name in {*vars(default), *default.attribute_map}}
    special: dict[str, dict[str, Any]] = {
        "gpt_neo": {"attention_types": [[["global"], 3]]},
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4},
        },
    }
    config = CONFIG_MAPPING[family](**(known | special.get(family, {})))
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        vars(part).update(rates_of(part))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e6, "the family needs another size"
    return model


@torch.no_grad()
def logits(model: Any, *, training: bool) -> torch.Tensor:
    model.train(training)
    ids = torch.arange(3, 3 + 2 * 16).reshape(2, 16)
    return model(input_ids=ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_training_mode_is_evaluation_mode(family: str) -> None:
    model = with_dropout(family)
    expected = logits(model, training=False)
    assert not torch.allclose(logits(model, training=True), expected, atol=1e-4), "there is no dropout to see"

    switch_off_dropout(model)
    with ConfiguredDropout(model).off():
        torch.testing.assert_close(logits(model, training=True), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits(model, training=False), expected, rtol=1e-5, atol=1e-6)
    assert largest_dropout(model) == 0


def test_the_threshold_of_a_router_is_no_noise() -> None:
    model = with_dropout("phimoe")
    expected = logits(model, training=False)
    switch_off_dropout(model)
    with ConfiguredDropout(model).off():
        assert torch.equal(logits(model, training=False), expected)


def test_the_configuration_is_without_dropout_only_for_as_long_as_it_is_asked_for() -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=VOCAB, attn_pdrop=0.1, resid_pdrop=0.2)
    model = GPT2LMHeadModel(config)
    configured = ConfiguredDropout(model)

    def rates() -> tuple[float, float, float]:
        return config.attn_pdrop, config.resid_pdrop, config.embd_pdrop

    with configured.off():
        assert rates() == (0, 0, 0)
        with configured.as_given():
            assert rates() == (0.1, 0.2, 0.1)
        assert rates() == (0, 0, 0)
    assert rates() == (0.1, 0.2, 0.1)

    def stop_inside() -> None:
        with configured.off():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_inside()
    assert rates() == (0.1, 0.2, 0.1)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3, task_type="CAUSAL_LM"),
        LoKrConfig(
            r=2, target_modules=["q_proj"], module_dropout=0.3, rank_dropout=0.1, task_type="CAUSAL_LM"
        ),
    ],
)
def test_dropout_of_adapters_is_found_too(adapter: Any) -> None:
    model = get_peft_model(tiny_llama(), adapter)
    assert largest_dropout(model) == 0.3
    switch_off_dropout(model)
    assert largest_dropout(model) == 0


def test_every_kind_of_dropout_module_is_found_and_nothing_else() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dropout1d(0.4), nn.AlphaDropout(0.3)
            self.drop_tokens = True
            self.p = 0.7

    block = Block()
    assert largest_dropout(block) == 0.4
    switch_off_dropout(block)
    assert (block.first.p, block.second.p, block.drop_tokens, block.p) == (0, 0, True, 0.7)
