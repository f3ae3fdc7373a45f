"""Lean layers: norms and gated blocks of Llama-shaped models that keep less for backward, at the same result.

Left to autograd, a norm keeps its input and the normalised input, a gated feed-forward block keeps four wide
vectors a token: together more than half of all activations. Here a norm keeps its input and one number a token, a
block its two projections; the rest is computed again by element. Which layers these are is found by name and
then by trial: a layer is replaced only where it answers like the formula.

RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467. The gated block (SwiGLU): Shazeer 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dynamic_dpo.engine.sharded import gathered_modules

_silu_backward: Callable[[Tensor, Tensor], Tensor] = torch.ops.aten.silu_backward


class _RMSNorm(torch.autograd.Function):
    """``weight · x / sqrt(mean(x²) + epsilon)``, in float32 inside whatever comes in, as transformers has it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(states, weight, scale)
        return (wide * scale).to(states.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        normalised = states.to(scale.dtype) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normalised.to(states.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        slope = (grad * weight).to(scale.dtype)
        along = (slope * normalised).mean(-1, keepdim=True)
        grad_states = slope.sub_(normalised.mul_(along)).mul_(scale).to(states.dtype)
        return grad_states, grad_weight, None


class _GatedSiLU(torch.autograd.Function):
    """``silu(gate) · up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _GatedDown(torch.autograd.Function):
    """``(silu(gate) · up) @ weight.T``: the product is computed again, for the weight's gradient alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        active = F.silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = grad.flatten(0, -2).T @ (active * up).flatten(0, -2)
        grad_product = grad @ weight
        grad_up = active.mul_(grad_product)
        return _silu_backward(grad_product.mul_(up), gate), grad_up, grad_weight


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return ``states`` (shape [..., H]) over their root mean square, times ``weight`` (shape [H])."""
    apply: Callable[..., Tensor] = _RMSNorm.apply
    return apply(states, weight, epsilon)


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) · up``, all of one shape."""
    apply: Callable[..., Tensor] = _GatedSiLU.apply
    return apply(gate, up)


def gated_down(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """Return ``gated_silu(gate, up) @ weight.T``: from shape [..., I] by weight [H, I] to [..., H]."""
    apply: Callable[..., Tensor] = _GatedDown.apply
    return apply(gate, up, weight)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    # Autocast, adapters, quantised and sharded weights bring a product of their own.
    plain = type(down) is nn.Linear and type(down.weight) is nn.Parameter and down.bias is None
    hooked = plain and (down._forward_hooks or down._forward_pre_hooks or down._backward_hooks)
    if plain and not hooked and not torch.is_autocast_enabled(x.device.type):
        return gated_down(gate, up, down.weight)
    result: Tensor = down(gated_silu(gate, up))
    return result


def use_lean_layers(model: nn.Module) -> int:
    """Make the norms and gated blocks of ``model`` lean, wherever the lean layer gives the same answer.

    Args:
        model: Any model. Only the ``forward`` of its matching layers is replaced, on the instance; a layer
            whose ``forward`` something else has replaced already is left alone.

    Returns:
        The number of layers replaced. Collective over ranks where the model is sharded.
    """
    return sum(_replace(module) for module in gathered_modules(model))


def _replace(module: nn.Module) -> bool:
    if "forward" in vars(module) or any(p.is_meta for p in module.parameters()):
        return False
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        forward: Callable[..., Tensor] = _norm_forward
        like = next(module.parameters())
        width = len(like)
    elif is_gated(module):
        width = getattr(module.gate_proj, "in_features", 0)
        forward, like = _gated_forward, next(module.parameters())
    else:
        return False
    draw = torch.Generator().manual_seed(0)
    dtype = like.dtype if like.dtype.is_floating_point else torch.float32
    trial = torch.randn(1, 2, width, generator=draw).to(like.device, dtype)
    training = module.training
    try:
        with torch.no_grad():
            module.train(False)
            # Not the call: what hooks on it do (sharding, say) is done to either.
            same = torch.allclose(module.forward(trial), forward(module, trial), rtol=1e-5, atol=1e-6)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        module.train(training)
    if same:
        module.forward = MethodType(forward, module)
    return same


def is_gated(module: nn.Module) -> bool:
    """Return whether a module has the parts of a gated SiLU block; meta tensors will do."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return False
    return type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
