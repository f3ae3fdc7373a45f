"""What a training has to know of FSDP2, by which accelerate spreads weights, gradients and optimizer over the ranks.

A model is sharded before anything is computed with it. From then on ranks must make the same passes: one with less
to do makes passes of no pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from dynamic_dpo.engine.sharded import is_sharded

T = TypeVar("T")


def keep_float32(accelerator: Any) -> None:
    """Let results leave sharded models as they were computed, and gradients be averaged in float32.

    accelerate's policy for bf16 casts both: a log-probability of -700 nats would be known to whole nats, and small
    gradients of many ranks would be lost in their sum. Weights are gathered in bf16 all the same.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def shard(accelerator: Any, model: nn.Module) -> None:
    """Spread a model over the ranks, in place; one that is spread already is left as it is. Collective over ranks.

    Where weights were loaded by the first rank alone, the others get theirs from it.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    if not is_sharded(model):
        with _saved_buffers_apart(accelerator, model):
            fsdp2_prepare_model(accelerator, model)


@contextmanager
def _saved_buffers_apart(accelerator: Any, model: nn.Module) -> Iterator[None]:
    """Give all ranks the first one's buffers that are saved with the model, and let accelerate pass them by.

    It takes all that a model saves for weights to be cut in parts, and ends in an error over a buffer, such as the
    routers' corrections of DeepSeek-V3; buffers that are saved nowhere stay as they are on each rank.
    """
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in module._buffers.items()
        if value is not None and name not in module._non_persistent_buffers_set
    ]
    if not accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        found = []
    for module, name, value in found:
        has_it = accelerator.is_main_process
        shared = (
            value.to(accelerator.device) if has_it else torch.empty_like(value, device=accelerator.device)
        )
        shared = shared.contiguous()
        # As bytes: not every type of number travels through every backend.
        torch.distributed.broadcast(shared.view(-1).view(torch.uint8), src=0)
        module._buffers[name] = shared
        module._non_persistent_buffers_set.add(name)
    try:
        yield
    finally:
        for module, name, _ in found:
            module._non_persistent_buffers_set.discard(name)


def frozen_twin(model: nn.Module) -> Any:
    """Return a frozen copy of a model over the same weights, which takes no memory until either is sharded."""
    weights = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
    return copy.deepcopy(model, weights)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Switch the adapters of a `peft` model off, and leave what is trained marked as such.

    A sharded parameter's whole form takes over the mark when it is gathered for the first time: a pass without
    adapters would make it one that is never trained.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with model.disable_adapter():
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
        yield


def most_of_ranks(accelerator: Any, count: int) -> int:
    """Return the largest of the ranks' counts. Collective over ranks."""
    if accelerator.num_processes == 1:
        return count
    counts = accelerator.gather(torch.tensor([count], device=accelerator.device))
    return int(counts.max())


def same_number_of_passes(accelerator: Any, plan: list[list[int]]) -> list[list[int]]:
    """Return a plan with as many micro-batches as the longest plan of all ranks has; those added hold no pair.

    Collective over ranks.
    """
    return plan + [[]] * (most_of_ranks(accelerator, len(plan)) - len(plan))


def same_number_of_batches(accelerator: Any, batches: Iterable[T]) -> Iterator[T | None]:
    """Yield a rank's batches, and ``None`` for as long as other ranks still have some. Collective over ranks."""
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not most_of_ranks(accelerator, int(batch is not None)):
            return
        yield batch
