"""Tiny random models of every family of causal language models, made from transformers' own configurations.

A configuration is shrunk by the names of its settings: widths, layers, heads, experts, windows. What a family needs
beyond that stands in `_BESIDES`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

VOCAB = 96
LAYERS, HEADS, WINDOW, LONGEST = 4, 4, 8, 128
# The value of a setting in a tiny configuration, and the names under which families have it.
_SIZES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (VOCAB, ("vocab_size", "padded_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size")),
    (
        32,
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embed_dim",
            "embedding_size",
            "word_embed_proj_dim",
            "lru_width",
        ),
    ),
    (48, ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "dff", "dim_ff", "mlp_dim")),
    (
        48,
        (
            "intermediate_size_mlp",
            "dense_intermediate_size",
            "expert_ffn_hidden_size",
            "prefix_dense_intermediate_size",
        ),
    ),
    (24, ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size")),
    (24, ("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size")),
    (
        HEADS,
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "swa_num_attention_heads",
        ),
    ),
    (4, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")),
    (LAYERS, ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")),
    (2, ("depth", "num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads")),
    (2, ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")),
    (4, ("linear_num_value_heads", "rotary_dim", "state_size", "mamba_d_state", "ssm_state_size")),
    (
        8,
        ("head_dim", "swa_head_dim", "kv_channels", "qk_nope_head_dim", "qk_rope_head_dim", "index_head_dim"),
    ),
    (
        8,
        (
            "linear_key_head_dim",
            "linear_value_head_dim",
            "attention_head_size",
            "hidden_size_per_layer_input",
        ),
    ),
    (8, ("mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim", "linear_head_dim")),
    # Fewer index heads than these score many keys alike, and which of them is taken is chance.
    (16, ("index_n_heads",)),
    (WINDOW, ("index_topk",)),
    (
        WINDOW,
        (
            "sliding_window",
            "sliding_window_size",
            "attention_chunk_size",
            "window_size",
            "attention_window_size",
        ),
    ),
    (12, ("v_head_dim", "swa_v_head_dim")),
    (16, ("q_lora_rank", "kv_lora_rank")),
    (LONGEST, ("max_position_embeddings", "n_positions", "n_ctx")),
    (0.1, ("initializer_range", "init_std")),
    (1, ("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "bos_token_id")),
    (2, ("eos_token_id",)),
    (0, ("pad_token_id", "num_kv_shared_layers", "num_nextn_predict_layers", "num_mtp_layers")),
    # Of pictures, which no row has.
    (28, ("image_size",)),
    (14, ("patch_size",)),
    (90, ("image_token_id", "image_token_index")),
    (91, ("video_token_id", "video_token_index", "audio_token_id")),
)
_TINY = {name: value for value, names in _SIZES for name in names}
_LATENT = {"num_key_value_heads": HEADS, "head_dim": 8}
_PICTURE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_MAMBA = {"num_heads": 8, "head_dim": 8}
# Gemma 4's scores are not scaled: with global heads of 512 and weights of 0.1 float32 rounds the gradient of
# `gemma4_unified` by 1e-5 of its size. In float64 packed and alone differ by 3e-14 there, by 4e-15 with these.
_UNSCALED = {"global_head_dim": 16, "initializer_range": 0.02}
_BESIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "youtu", "minicpm3"), _LATENT
    ),
    **dict.fromkeys(("dots3_note", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "kimi_linear"), _LATENT),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": _MAMBA,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_groups": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "gemma4_text": _UNSCALED,
    "gemma4_unified_text": _UNSCALED,
    "phi3": {"sliding_window": WINDOW},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "emu3": {"vocabulary_map": {"<image>": 90}},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text"), _PICTURE_AXES),
}
# Why some of transformers' causal language models are not tried.
NOT_TRIED = {
    "an encoder": "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod cpmant reformer",
    "the decoder of an encoder-decoder": "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus "
    "plbart prophetnet trocr whisper",
    "of sound or of pictures": "moshi musicgen musicgen_melody moss_transcribe_diarize git",
    "sees what comes after a token, and is refused": "paligemma",
    "draws its experts by lot in training, and is stopped before the first step": "phimoe",
    "asks for the package `timm`, and its text model is tried": "gemma3n",
    "not to be made tiny by the names of its settings": "blt cohere_compass_text dots3_note qwen4_exp "
    "qwen4_exp_text zamba zamba2",
    "a draft of another model": "gemma4_assistant gemma4_unified_assistant",
    "another family's by another name": "gpt-sw3 internlm3 iquestcoder dots3_note_text llama4_text qwen3_5_moe "
    "qwen3_5_text gemma4_unified_text",
}
# With pictures, of which the rows have none.
MULTIMODAL = (
    "aya_vision glm4v idefics3 internvl lfm2_vl llava llava_next llava_onevision mistral3 qwen2_5_vl qwen2_vl "
    "qwen3_vl qwen3_vl_moe smolvlm"
)


def family_names() -> list[str]:
    """Return the names of all families that are tried, as their configurations have them."""
    left_out = {name for names in NOT_TRIED.values() for name in names.split()}
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL.split()} - left_out)


def tiny_config(model_type: str, **settings: Any) -> Any:
    """Return the shrunk configuration of a family."""
    return _shrunk(type(AutoConfig.for_model(model_type)), settings)


def _shrunk(kind: Any, settings: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in _TINY.items() if name in names}
    parts = getattr(kind, "sub_configs", None) or {}
    if parts:
        whole = kind()
        for name in parts:
            part = getattr(whole, name, None)
            if dataclasses.is_dataclass(part):
                values[name] = _shrunk(type(part), {})
    return kind(**(values | _BESIDES.get(kind.model_type, {}) | settings))


def tiny_model(model_type: str, *, seed: int = 0, **settings: Any) -> Any:
    """Return a tiny model of a family, its weights drawn from ``seed``."""
    config = tiny_config(model_type, **settings)
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            torch.manual_seed(seed)
            return mapping[type(config)]._from_config(config).float()
    raise LookupError(f"transformers has no language model of type {model_type}")
