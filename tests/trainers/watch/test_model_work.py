"""The operations that a model needs are those that PyTorch counts in its passes, whatever the model's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.trainers.watch.model_work import ModelWork, PairTokens
from tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_qwen2

LENGTH = 7
# One sequence without a mask: PyTorch counts attention over all of the square.
WHOLE = PairTokens(needed=LENGTH, predicting=LENGTH, attended=LENGTH**2)


def counted(model: Any, *, backward: bool) -> int:
    """Return what PyTorch counts in a pass over one sequence."""
    ids = torch.arange(4, 4 + LENGTH)[None]
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, use_cache=False).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gpt2])
def test_the_operations_are_those_that_pytorch_counts(make: Callable[..., Any]) -> None:
    model = make(attention="eager")
    work = ModelWork.of(model)
    assert counted(model, backward=False) == work.forward_flops(WHOLE)
    assert counted(model, backward=True) == work.training_flops(WHOLE)


def test_under_an_adapter_frozen_weights_have_no_gradient_of_their_own() -> None:
    model = get_peft_model(tiny_llama(attention="eager"), LoraConfig(r=4, target_modules="all-linear"))
    work = ModelWork.of(model)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert work.layers_trained == trained > 0
    assert work.head_trained == 0
    # Nothing below the first layer is trained: its inputs need no gradient, which is not left out of the formula.
    inputs = 2 * LENGTH * (32 * 32 + 2 * 32 * 16 + 3 * 4 * 32)
    assert counted(model, backward=True) == work.training_flops(WHOLE) - inputs


def test_weights_that_peft_keeps_beside_a_trained_copy_count_once() -> None:
    plain = ModelWork.of(tiny_llama())
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    work = ModelWork.of(get_peft_model(tiny_llama(), config))
    assert (work.head, work.head_trained) == (plain.head, plain.head)


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    four = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2))
    work = ModelWork.of(four)
    attention, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 32 * 4, 3 * 32 * 48
    assert work.layers == 2 * (attention + router + 2 * expert)


def test_frozen_weights_are_read_as_they_are() -> None:
    model = tiny_llama()
    whole = ModelWork.of(model)
    assert whole.layers == whole.layers_trained
    assert ModelWork.of(model.requires_grad_(False)).layers_trained == 0


def test_attended_positions_are_those_of_the_mask() -> None:
    from dynamic_dpo.engine.rows import shared_rows

    pairs = PairBatch([[5, 6, 7], [8]], [[9, 10, 11, 2], [2]], [[12, 2], [13, 14, 2]], [0, 1])
    tokens = PairTokens.of(pairs)
    rows = shared_rows(pairs)
    real = rows.padding_mask().bool()[:, None, :, None]
    assert tokens.attended == int((rows.allowed_attention() & real).sum())
    assert tokens.needed == int(rows.padding_mask().sum())
    assert tokens.predicting == len(set(rows.predictors.tolist()))
    one, other = (PairTokens.of(pairs.select([index])) for index in (0, 1))
    assert one + other == tokens
