"""Activations that wait for the backward pass in the host's memory, where the way there and back pays.

Weights never travel: autograd saves them too, but they stay on the device anyhow. Nor does what is small, or repeated
in memory. What several layers save is copied once. Copies are put into the device's own queue of work, behind what
writes the values and before what reads them; the host does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

# Below this the calls cost more than the memory is worth.
SMALLEST_BYTES = 2**20


def can_offload_from(device: torch.device) -> bool:
    """Return whether the host's memory is another one than the device's."""
    return device.type == "cuda"


def to_pinned_memory(tensor: Tensor) -> Tensor:
    """Return a copy in page-locked memory of the host, from which a GPU reads without the processor."""
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on ``device``."""
    return tensor.to(device, non_blocking=True)


class OffloadedActivations:
    """A context whose forward pass keeps its large activations in the host's memory.

    Args:
        model: Its parameters and buffers stay, in whatever format they are computed with.
        device: Where activations come from and return to; what is saved from elsewhere stays there.
        smallest: Bytes of the smallest tensor that travels.
        leave: Copies a tensor to the host.
        return_to: Copies it back to a device.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> inputs = torch.ones(2, 4, requires_grad=True)
        >>> with OffloadedActivations(layer, torch.device("cpu"), smallest=1, leave=torch.clone) as offloaded:
        ...     loss = layer(inputs * 2).square().sum()
        >>> loss.backward()  # the layer's input and its output travelled, its weight did not
        >>> offloaded.num_copies
        2
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        smallest: int = SMALLEST_BYTES,
        leave: Callable[[Tensor], Tensor] = to_pinned_memory,
        return_to: Callable[[Tensor, torch.device], Tensor] = to_device,
    ) -> None:
        self.device, self.smallest = device, smallest
        self.num_copies = 0
        self._leave, self._return_to = leave, return_to
        self._storages, self._matrices = _weights_of(model)
        self._copies: dict[tuple[Any, ...], tuple[Any, _Copy]] = {}
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> OffloadedActivations:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        # From here on nothing is saved, and the graph alone holds the copies.
        self._copies.clear()

    def _pays(self, tensor: Tensor) -> bool:
        size = tensor.numel() * tensor.element_size()
        return (
            # Subclasses (shards of several devices, quantised weights) have their own ways of being stored.
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.layout == torch.strided
            and tensor.device == self.device
            and size >= self.smallest
            # An expanded tensor takes less memory than its copy would.
            and size <= tensor.untyped_storage().nbytes()
            and tensor.untyped_storage().data_ptr() not in self._storages
            and tuple(tensor.shape) not in self._matrices
        )

    def _pack(self, tensor: Tensor) -> Tensor | _Copy:
        if not self._pays(tensor):
            return tensor
        storage: Any = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        layout = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        # Written to in between, the same place holds other values; freed in between, it may be another tensor's.
        key = (storage.cdata, *layout, tensor._version)
        known, copy = self._copies.get(key, (None, None))
        if known is None or copy is None or known.expired():
            copy = _Copy(self._leave(tensor))
            self.num_copies += 1
            self._copies[key] = (storage, copy)
        return copy

    def _unpack(self, saved: Tensor | _Copy) -> Tensor:
        return self._return_to(saved.host, self.device) if isinstance(saved, _Copy) else saved


class _Copy:
    """A tensor in the host's memory, told apart from one that stayed where it was."""

    def __init__(self, host: Tensor) -> None:
        self.host = host


def _weights_of(model: nn.Module) -> tuple[set[int], set[tuple[int, ...]]]:
    """Return where a model's weights are stored, and the sizes of its matrices, either way round.

    Autocast's copy of a weight and what FSDP gathers are stored elsewhere, and are known by their size.
    """
    tensors: Iterable[Tensor] = chain(model.parameters(), model.buffers())
    storages, matrices = set(), set()
    for tensor in tensors:
        storages.add(getattr(tensor, "_local_tensor", tensor).untyped_storage().data_ptr())
        if tensor.dim() > 1:
            *outer, rows, columns = tensor.shape
            matrices |= {(*outer, rows, columns), (*outer, columns, rows)}
    return storages, matrices
