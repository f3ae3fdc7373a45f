"""Which model a benchmark runs: a real one by name, or a Llama of random weights in a named size.

Random weights cost what trained ones cost, so sizes that no package carries can be measured too.
"""

from __future__ import annotations

from typing import Any

# Arguments of LlamaConfig. "1b" has the sizes of the published 1B-parameter Llama 3.2.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}
# Of random weights: large enough for logits that differ, small enough for log-probabilities like a trained model's.
INITIALIZER_RANGE = 0.05


def is_random(name: str) -> bool:
    """Return whether ``name`` is a size with random weights, which no text can be tokenised for."""
    return name in SHAPES


def load_model(name: str, *, attention: str = "sdpa") -> Any:
    """Return the model in float32, on the CPU.

    Args:
        name: A model name of the package, or one of `SHAPES`.
        attention: Its attention, as transformers names it.
    """
    if not is_random(name):
        from dynamic_dpo.models.sources import load_model as load
        from dynamic_dpo.models.sources import resolve_model

        return load(resolve_model(name), attn_implementation=attention)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[name],
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=INITIALIZER_RANGE,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def load_tokenizer(name: str) -> Any:
    """Return the model's tokenizer; of a random model, one whose words are the token numbers."""
    if not is_random(name):
        from dynamic_dpo.models.sources import load_tokenizer as load
        from dynamic_dpo.models.sources import resolve_model

        return load(resolve_model(name))
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *map(str, range(3, SHAPES[name]["vocab_size"]))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
