"""What is trained is float32; what is frozen stays as it came."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dynamic_dpo.models.trained_weights import has_narrow_trained_weights, hold_trained_weights_in_float32
from tiny import tiny_llama, tiny_qwen2

NARROW = (torch.bfloat16, torch.float16)


def dtypes(model: Any, *, trained: bool) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad is trained}


def logits(model: Any, *, autocast: bool = False) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits


@pytest.mark.parametrize("dtype", NARROW)
def test_a_model_that_is_trained_whole_becomes_float32_with_its_ties(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_qwen2().to(dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = list(model.parameters())
    hold_trained_weights_in_float32(model, autocast=False)
    assert dtypes(model, trained=True) == {torch.float32}
    assert all(torch.equal(weight, before[name].float()) for name, weight in model.state_dict().items())
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "what is trained is held in float32 (0.00 GB more" in caplog.text
    hold_trained_weights_in_float32(model, autocast=False)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("autocast", [False, True])
def test_the_frozen_base_of_an_adapter_keeps_its_bits(autocast: bool) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(dtype=torch.bfloat16), lora, autocast_adapter_dtype=False)
    assert has_narrow_trained_weights(model)
    hold_trained_weights_in_float32(model, autocast=autocast)
    assert not has_narrow_trained_weights(model)
    assert dtypes(model, trained=True) == {torch.float32}
    assert dtypes(model, trained=False) == {torch.bfloat16}
    logits(model, autocast=autocast).float().sum().backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_module_that_an_adapter_trains_whole_goes_with_its_base(autocast: bool) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(dtype=torch.bfloat16), lora)
    hold_trained_weights_in_float32(model, autocast=autocast)
    assert dtypes(model, trained=True) == {torch.float32}
    # Without autocast nothing would cast the base's states for the float32 head.
    assert dtypes(model, trained=False) == {torch.bfloat16 if autocast else torch.float32}
    logits(model, autocast=autocast).float().sum().backward()


def test_float32_is_left_alone_and_nothing_said(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    hold_trained_weights_in_float32(model, autocast=True)
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights
    assert not caplog.records
