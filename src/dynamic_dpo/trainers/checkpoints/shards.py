"""The shards that FSDP2 leaves in a checkpoint, read on one process and as tensors and plain values alone.

Torch's distributed checkpoints keep the list of their tensors, and every value that is no tensor, as pickles, and
torch reads both with no care for what they hold. Here an unpickler that knows their own types alone reads them first.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Final

import torch
from torch.distributed.checkpoint import metadata as dcp_types
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.state_dict_loader import load as load_into

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.models.sources import MODEL_SHARDS as MODEL_SHARDS
from dynamic_dpo.utils.names import path_inside

_LIST: Final = ".metadata"
# In accelerate's shards, every name of the model begins so.
_PREFIX: Final = "model."
_OWN_TYPES: Final = {
    ("torch.distributed.checkpoint.metadata", name): getattr(dcp_types, name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


class _ListUnpickler(pickle.Unpickler):
    """Knows the types of a list of shards, and no function but the one that names a tensor's layout."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _OWN_TYPES:
            return _OWN_TYPES[module, name]
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        if module.split(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePath  # Where the run once wrote it: nobody asks.
        raise pickle.UnpicklingError(f"{_LIST} asks for {module}.{name}, which no list of shards holds")


@contextmanager
def shard_errors() -> Iterator[None]:
    """Raise what went wrong in reading or writing shards itself, where torch wraps it in an error of all ranks.

    That one is no `Exception`: whoever catches errors would let it pass.
    """
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error


def read_list(folder: Path) -> dcp_types.Metadata:
    """Return what a folder of shards holds: tensors with shapes, types and places.

    Raises:
        CheckpointError: If the list is missing or not to be trusted: a foreign type, or a place outside the folder.
    """
    path = folder / _LIST
    try:
        with path.open("rb") as file:
            found: dcp_types.Metadata = _ListUnpickler(file).load()
        for index, place in found.storage_data.items():
            path_inside(folder, place.relative_path, what=f"the file of {index.fqn}")
        for name, entry in found.state_dict_metadata.items():
            if not isinstance(entry, dcp_types.TensorStorageMetadata):
                continue
            if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
                raise CheckpointError(f"the shards in {folder} do not hold all of {name}")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: without it nobody knows what the shards hold") from None
    except CheckpointError:
        raise
    except Exception as error:  # Whatever a pickle of unknown content may raise.
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not to be trusted ({what}): nothing of it is used. Take another checkpoint"
        ) from error
    if found.storage_meta is None:
        found.storage_meta = dcp_types.StorageMeta()
    return found


def check_shards(checkpoint: str | Path) -> None:
    """Make sure that torch may read a checkpoint's shards: no list and no value of them holds anything but data.

    Raises:
        CheckpointError: If one does.
    """
    for path in sorted(Path(checkpoint).glob(f"*/{_LIST}")):
        folder = path.parent
        found = read_list(folder)
        for index, place in found.storage_data.items():
            if not isinstance(found.state_dict_metadata.get(index.fqn), dcp_types.TensorStorageMetadata):
                _check_plain(folder, index.fqn, place)


def _check_plain(folder: Path, name: str, place: _StorageInfo) -> None:
    with (folder / place.relative_path).open("rb") as file:
        file.seek(place.offset)
        content = file.read(place.length)
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # Whatever a pickle of unknown content may raise.
        raise CheckpointError(
            f"{name} in {folder} is neither a tensor nor a plain value: nothing of it is used. Take another "
            "checkpoint"
        ) from error


class ModelShards(FileSystemReader):
    """The weights of a sharded checkpoint, read a few at a time without a process group.

    Args:
        checkpoint: A checkpoint with the folder `MODEL_SHARDS`.

    Attributes:
        names: The weights' names, in the model's order.

    Raises:
        CheckpointError: If the list of shards is missing or not to be trusted, or holds anything but tensors.
    """

    def __init__(self, checkpoint: Path) -> None:
        folder = checkpoint / MODEL_SHARDS
        super().__init__(folder)
        self._list = read_list(folder)
        entries: Mapping[str, Any] = self._list.state_dict_metadata
        for name, entry in entries.items():
            if not isinstance(entry, dcp_types.TensorStorageMetadata):
                raise CheckpointError(f"{name} in {folder} is no tensor: these are not a model's shards")
        self.names = [name.removeprefix(_PREFIX) for name in entries]

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_types.Metadata:
        """Return the list that was read with care, where torch would unpickle the file."""
        return self._list

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a weight."""
        size: torch.Size = self._entry(name).size
        return size

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return weights, put together from all ranks' shards.

        Raises:
            CheckpointError: If a shard cannot be read.
        """
        empty = {
            _PREFIX + name: torch.empty(self._entry(name).size, dtype=self._entry(name).properties.dtype)
            for name in names
        }
        try:
            with shard_errors(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*load in a single process")
                load_into(empty, storage_reader=self, no_dist=True)
        except Exception as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"a shard in {self.path} cannot be read: {what}") from error
        return {name.removeprefix(_PREFIX): tensor for name, tensor in empty.items()}

    def _entry(self, name: str) -> Any:
        return self._list.state_dict_metadata[_PREFIX + name]
