"""What scoring has to know of FSDP2, where a model's weights are spread over the ranks.

A sharded module gathers its weights when it is called, on all ranks at once, and holds whole weights only until it
is done. So nothing may be computed beside a module's own call, and every rank has to make the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2 has taken the module, by itself or together with others."""
    return isinstance(module, FSDPModule)


def unsharded_type(module: nn.Module) -> type:
    """Return the module's class, without what FSDP2 has put before it."""
    kind = type(module)
    return kind.__mro__[2] if is_sharded(module) else kind


def called_once(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``function(*inputs)``, run in one call of ``module``: its own weights are whole there, and in backward.

    Args:
        module: A sharded module.
        function: What its ``forward`` is for this call.
        *inputs: What the module is called with.
    """
    before = vars(module).get("forward")
    module.forward = function
    try:
        return module(*inputs)
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def reshard(model: nn.Module) -> None:
    """Leave each rank its shards of a model alone.

    Without a backward pass FSDP2 keeps some weights whole. They would be there when an optimizer or a checkpoint
    looks for the parameters.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def forget_pass(model: nn.Module) -> None:
    """Make a sharded model ready for its next pass, after one that an error has broken off on all ranks alike."""
    # PyTorch 2.13 and later; before, what was broken off is noticed at the next pass.
    if reset := getattr(model, "reset_iter_state", None):
        reset()


def head_for_later(head: nn.Module, states: Tensor, *, is_plain: bool) -> dict[str, Tensor]:
    """Return what gives the head's logits once the pass is over: a plain head's weight, else the logits themselves.

    Args:
        head: The output head of a sharded model, inside a pass of it.
        states: Hidden states. Shape [N, H].
        is_plain: Whether it is a linear layer and nothing more.
    """
    forward = head.forward

    def read(inputs: Tensor) -> dict[str, Tensor]:
        if not is_plain:
            return {"logits": forward(inputs)}
        return {name: values.detach().clone() for name, values in head.named_parameters()}

    found: dict[str, Tensor] = called_once(head, read, states)
    return found


def called_inside(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a module gives within a pass in which it has been called, so that its weights are whole."""
    outputs: Tensor = module.forward(inputs) if is_sharded(module) else module(inputs)
    return outputs


@contextmanager
def _gathered(unit: nn.Module) -> Iterator[None]:
    if not isinstance(unit, FSDPModule):
        yield
        return
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


def gathered_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module of ``model``, the outer ones first; its weights are whole until the next is asked for.

    Collective over ranks where the model is sharded.
    """

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        yield module
        for child in module.children():
            if is_sharded(child):
                with _gathered(child):
                    yield from walk(child)
            else:
                yield from walk(child)

    with _gathered(model):
        yield from walk(model)
