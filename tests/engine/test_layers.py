"""Lean layers: the same answers and gradients as the model's own, with less kept in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from dynamic_dpo.engine.layers import gated_down, gated_silu, rms_norm, use_lean_layers
from tiny import tiny_gpt2, tiny_llama, tiny_qwen2

IDS = torch.arange(1, 41).view(2, 20)


def loss(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model: nn.Module) -> int:
    held: dict[int, torch.Tensor] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(t.untyped_storage().nbytes() for pointer, t in held.items() if pointer not in weights)


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_answers_to_the_bit_and_learns_the_same_with_less_kept(build: Any, lora: bool) -> None:
    models = [build(), build()]
    if lora:
        targets = ["q_proj", "gate_proj", "down_proj"]
        torch.manual_seed(0)
        models = [
            get_peft_model(m, LoraConfig(target_modules=targets, init_lora_weights=False)) for m in models
        ]
        models[1].load_state_dict(models[0].state_dict())
    plain, lean = models
    names = list(lean.state_dict())
    # Two norms and one gated block in each of two layers, and the last norm.
    assert use_lean_layers(lean) == 7
    assert list(lean.state_dict()) == names
    assert use_lean_layers(lean) == 0
    assert torch.equal(loss(lean), loss(plain))
    expected, ours = gradients(plain), gradients(lean)
    assert ours.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))
    assert kept_bytes(lean) < (0.95 if lora else 0.85) * kept_bytes(plain)


def test_each_formula_passes_gradcheck_or_agrees_with_the_layer_it_stands_for() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_silu, (gate, up))
    assert torch.autograd.gradcheck(gated_down, (gate, up, weight))
    norm = LlamaRMSNorm(8)
    norm.weight.data.normal_()
    states, slope = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)
    theirs = torch.autograd.grad(norm(states), (states, norm.weight), slope)
    ours = torch.autograd.grad(
        rms_norm(states, norm.weight, norm.variance_epsilon), (states, norm.weight), slope
    )
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    tensors = [torch.randn(2, 4), torch.randn(2, 4), torch.randn(3, 4)]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index != frozen)
    gated_down(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [index == frozen for index in range(3)]
    states, weight = torch.randn(2, 4).requires_grad_(frozen != 0), torch.ones(4).requires_grad_(frozen != 1)
    rms_norm(states, weight, 1e-6).sum().backward()
    assert (states.grad is None, weight.grad is None) == (frozen == 0, frozen == 1)


def test_bfloat16_and_autocast_keep_their_types() -> None:
    for autocast in (False, True):
        models = [tiny_llama(dtype=torch.float32 if autocast else torch.bfloat16) for _ in range(2)]
        use_lean_layers(models[1])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain, lean = (loss(model) for model in models)
        assert plain.dtype == lean.dtype
        torch.testing.assert_close(lean, plain, rtol=0.02, atol=0.5)
        lean.backward()
        assert {p.grad.dtype for p in models[1].parameters()} == {models[1].dtype}


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, lean = tiny_llama(), tiny_llama()
    use_lean_layers(lean)
    lean.train()
    lean.gradient_checkpointing_enable({"use_reentrant": False})
    ours = gradients(lean)
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))


class Doubled(LlamaRMSNorm):
    """Called a norm, is another."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden_states)


Doubled.__name__ = "DoubledRMSNorm"


class GeluMLP(LlamaMLP):
    """Looks gated, adds one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_that_answer_otherwise_or_are_taken_are_left_alone() -> None:
    assert use_lean_layers(tiny_gpt2()) == 0
    assert use_lean_layers(Doubled(8)) == 0
    model = tiny_llama()
    assert use_lean_layers(GeluMLP(model.config)) == 0
    assert use_lean_layers(LlamaMLP(model.config)) == 1
    taken = model.model.layers[0].mlp
    taken.forward = taken.forward  # as hooks of other libraries do
    assert use_lean_layers(model) == 6
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=96,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    assert use_lean_layers(gemma) == 0
    with torch.device("meta"):
        assert use_lean_layers(LlamaRMSNorm(8)) == 0


def test_a_copy_runs_on_its_own_weights() -> None:
    model = tiny_llama()
    use_lean_layers(model)
    other = copy.deepcopy(model)
    before = loss(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(loss(model), before)
    assert not loss(other).any()
