"""Reading a model's weights once: under FSDP2 one rank of a machine reads them, the others get theirs from it later.

A model of 70 billion parameters in float32 is 280 GB; read by each of eight ranks it would be 2.2 TB of host memory.
The others build the same model on the meta device, without values, and accelerate spreads the first rank's weights
when it shards the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dynamic_dpo.errors import ModelError
from dynamic_dpo.utils.process_group import on_first_rank


class _Build(NamedTuple):
    """How a model is built: what all ranks must share before its weights can travel.

    Attributes:
        tensors: Shape and type of each weight, by name.
        tied: The name that a weight of two or more names goes by, for each of them.
        declared: The weights that transformers holds to be tied, target to source.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    tied: dict[str, str]
    declared: dict[str, str]


def is_read_once() -> bool:
    """Return whether one rank reads for all: in an open process group, under FSDP, with its launch file's
    ``fsdp_cpu_ram_efficient_loading``.
    """
    from transformers.integrations import is_fsdp_enabled

    return bool(is_fsdp_enabled())


def load_once(load: Callable[..., Any]) -> Any:
    """Load a model on the first rank, then on the others without its weights, built as the first rank's. Collective.

    On every further machine the first rank there reads them too: transformers makes no difference between machines.

    Args:
        load: Loads the model; with ``device_map="meta"`` without weights, buffers that are saved nowhere excepted.

    Returns:
        The model: with its weights, or on the meta device.

    Raises:
        ModelError: What ``load`` raises, on every rank; or if a rank's files make another model.
    """
    from transformers.distributed.utils import is_local_dist_rank_0

    loaded = []

    def first() -> _Build:
        loaded.append(load())
        return _build_of(loaded[0])

    build = on_first_rank(first)
    if loaded:
        return loaded[0]
    model = load() if is_local_dist_rank_0() else load(device_map="meta")
    _tie_as(model, build)
    if _build_of(model) != build:
        raise ModelError(
            "the model differs from that of the first rank, from which it is to get its weights: all ranks must read "
            "the same files with the same versions of the packages"
        )
    return model


def _build_of(model: Any) -> _Build:
    names: dict[int, str] = {}
    every = list(model.named_parameters(remove_duplicate=False))
    first = {name: names.setdefault(id(parameter), name) for name, parameter in every}
    several = {source for name, source in first.items() if name != source}
    return _Build(
        {name: (tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()},
        {name: source for name, source in first.items() if source in several},
        dict(model.all_tied_weights_keys),
    )


def _tie_as(model: Any, build: _Build) -> None:
    """Tie a model's weights as another's: whether they are, is decided by their values in the files."""
    model.all_tied_weights_keys = dict(build.declared)
    for name, source in build.tied.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, model.get_parameter(source))
