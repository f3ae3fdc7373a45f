"""Tiny random models and pairs for tests: small enough for seconds, real enough to be wrong."""

from __future__ import annotations

import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainingArguments,
)

VOCAB = 96


def tiny_llama(
    *, seed: int = 0, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_qwen2(*, seed: int = 0, attention: str = "sdpa") -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.2,
            tie_word_embeddings=True,
            attn_implementation=attention,
        )
    )


def tiny_gpt2(*, seed: int = 0, attention: str = "sdpa") -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=128,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation=attention,
        )
    )


def word_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCAB - 4))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


def random_pairs(count: int, *, seed: int = 0, longest: int = 12) -> Dataset:
    """Tokenised pairs of varied lengths; completions end in the end-of-sequence token."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(draw.randint(low, high))]

    return Dataset.from_dict(
        {
            "prompt_ids": [ids(2, longest) for _ in range(count)],
            "chosen_ids": [[*ids(1, longest), 2] for _ in range(count)],
            "rejected_ids": [[*ids(1, longest), 2] for _ in range(count)],
            "row": list(range(count)),
        }
    )


def training_arguments(folder: object, **overrides: object) -> TrainingArguments:
    settings: dict[str, object] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "num_train_epochs": 1,
    }
    return TrainingArguments(**(settings | overrides))
