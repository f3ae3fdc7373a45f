"""Weights that are trained are held in float32, whatever dtype the model came in.

A step of preference training moves a weight by about the learning rate, 5e-7. bfloat16 keeps 8 bits of a number and
float16 11: beside a weight of 0.02 such a step is rounded away, every time, and nothing is learned. Autocast computes
in 16 bits all the same. What is frozen needs no such room and stays as it came: an adapter's base, quantised weights.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

import torch
from torch import nn

logger = logging.getLogger("dynamic_dpo")


def hold_trained_weights_in_float32(model: nn.Module, *, autocast: bool) -> None:
    """Cast weights of 16 bits that are trained to float32, in place, and say so once.

    The parameters stay the same objects, tied ones tied. Between an adapter's weights and those of its base peft's
    layers cast by themselves, between all others autocast does; where neither does, frozen weights beside trained
    ones are cast too, since their products would fail.

    Args:
        model: The model to train, with its adapters.
        autocast: Whether training runs under autocast.
    """
    narrow = [
        parameter for parameter in model.parameters() if parameter.requires_grad and _is_narrow(parameter)
    ]
    if not narrow:
        return
    adapters = {id(parameter) for parameter in _adapter_parameters(model)}
    widen_all = not autocast and not all(id(parameter) in adapters for parameter in narrow)
    is_whole_model = len(narrow) == len(list(model.parameters()))
    dtype = narrow[0].dtype
    widened = list(model.parameters()) if widen_all else narrow
    num_bytes = sum(2 * tensor.numel() for tensor in widened if _is_narrow(tensor))
    for tensor in [*widened, *(model.buffers() if widen_all or is_whole_model else ())]:
        if _is_narrow(tensor):
            tensor.data = tensor.data.float()
    logger.warning(
        "%s weights round a learning rate's small steps away: what is trained is held in float32 (%.2f GB more; with "
        "gradients and Adam's moments four times that). bf16=True computes in bfloat16 all the same",
        str(dtype).removeprefix("torch."),
        num_bytes / 1e9,
    )


def has_narrow_trained_weights(model: nn.Module) -> bool:
    """Return whether any weight of 16 bits is trained."""
    return any(parameter.requires_grad and _is_narrow(parameter) for parameter in model.parameters())


def _is_narrow(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights that peft's layers add to the base's. Whole modules that it copies to train are none."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).parameters()
