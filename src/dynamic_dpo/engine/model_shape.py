"""What the memory of a training depends on in a model, read from its configuration: nothing is loaded.

The model is built without memory for its weights (on torch's meta device), and its parameters are counted one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from dynamic_dpo.engine.layers import is_gated
from dynamic_dpo.engine.token_budget import layer_widths
from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.adapters import adapter_sizes, find_adapter
from dynamic_dpo.models.sources import load_config, resolve_model

Size = tuple[int, ...]
# The published sizes of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B.
LLAMAS: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
    },
    "70b": {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "intermediate_size": 28_672,
        "num_attention_heads": 64,
    },
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream, or of the attention heads together where that is more.
        inner: Width that a token passes inside a feed-forward block, of all its experts together.
        vocabulary: Tokens of the output head.
        tensors: The sizes of all parameters, one that is used twice counted once.
        linear: (out, in) of the linear layers but the output head: what adapters and 4-bit weights replace.
        unit: Parameters of the largest decoder layer, which FSDP gathers at once.
        kept: Parameters that FSDP keeps gathered from the forward into the backward pass: final norm and output head,
            embeddings that are tied to it, and what belongs to no layer.
        lean: Whether its layers can be those of `layers`.
        given: The sizes of an adapter that came with the model, ``None`` without one.
    """

    layers: int
    hidden: int
    inner: int
    vocabulary: int
    tensors: tuple[Size, ...]
    linear: tuple[tuple[int, int], ...]
    unit: int
    kept: int
    lean: bool
    given: tuple[Size, ...] | None = None

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        return count(self.tensors)

    @cached_property
    def in_linear(self) -> int:
        """Parameters of the linear layers' matrices, without the output head."""
        return count(self.linear)

    def adapter(self, rank: int) -> tuple[Size, ...]:
        """Return the sizes of LoRA's matrices of a rank on every linear layer but the output head, or those given."""
        if self.given is not None:
            return self.given
        return tuple(size for out, into in self.linear for size in ((rank, into), (out, rank)))


def count(sizes: Iterable[Size]) -> int:
    """Return the elements of tensors.

    >>> count([(2, 3), (4,)])
    10
    """
    return sum(map(math.prod, sizes))


def largest_shard(sizes: Iterable[Size], gpus: int) -> int:
    """Return the elements that the fullest GPU holds of sharded tensors: FSDP2 deals out whole rows.

    >>> largest_shard([(16, 100), (5,)], gpus=8)  # two rows, and one number where others have none
    201
    """
    return sum(-(-size[0] // gpus) * math.prod(size[1:]) if size else 1 for size in sizes)


def shape_of(name: str) -> ModelShape:
    """Return the shape of a model by its name; of one on a hub, only the configuration is fetched.

    Args:
        name: ``1b``, ``8b`` or ``70b`` for the sizes of the Llama 3 models; else a hub name, a folder with
            ``config.json`` or of an adapter, a ``.gguf`` file or ``package:NAME``.

    Raises:
        ModelError: If there is no such model, or it is no causal language model that transformers knows.
    """
    from transformers import LlamaConfig

    if name.lower() in LLAMAS:
        return shape_from_config(
            LlamaConfig(vocab_size=128_256, num_key_value_heads=8, **LLAMAS[name.lower()])
        )
    found = find_adapter(name)
    if found is not None and found.adapter is not None:
        base = shape_from_config(load_config(found.base))
        return replace(base, given=tuple(adapter_sizes(found.adapter)))
    try:
        config = load_config(resolve_model(name))
    except ModelError as error:
        raise ModelError(
            f"{error}. Give 1b, 8b, 70b, a hub name, a folder with config.json, a .gguf file or package:NAME"
        ) from error
    return shape_from_config(config)


def shape_from_config(config: Any) -> ModelShape:
    """Return the shape of the model that a configuration of transformers describes.

    Raises:
        ModelError: If it is no causal language model that transformers knows.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(f"{type(config).__name__} is no causal language model here: {error}") from error
    model.tie_weights()
    text = config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: a causal language model is needed")
    names = set(getattr(model, "_no_split_modules", None) or ())
    units = [_own_parameters(module) for module in model.modules() if type(module).__name__ in names]
    tensors = tuple(tuple(parameter.shape) for parameter in model.parameters())
    apart = 0 if embedding.weight is head.weight else embedding.weight.numel()
    widths = layer_widths(text)
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=widths.hidden,
        inner=widths.inner,
        vocabulary=head.weight.shape[0],
        tensors=tensors,
        linear=tuple(_out_and_in(module) for module in model.modules() if _is_linear(module, head)),
        unit=max(units, default=0),
        kept=count(tensors) - sum(units) - apart,
        lean=any(map(is_gated, model.modules())),
    )


def _own_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_linear(module: nn.Module, head: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D)) and module is not head


def _out_and_in(module: Any) -> tuple[int, int]:
    out, into = module.weight.shape
    return (out, into) if isinstance(module, nn.Linear) else (into, out)
