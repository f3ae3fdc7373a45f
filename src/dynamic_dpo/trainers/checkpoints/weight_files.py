"""Writing weights a few at a time, into safetensors files of bounded size that are read back as they fill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dynamic_dpo.errors import CheckpointError


class WeightFiles:
    """The weight files of one model folder, as `from_pretrained` reads them.

    Args:
        folder: An existing folder.
        stem: ``model`` or ``adapter_model``.
        limit: Bytes of a file; only a layer that has more makes a larger one. ``None``: one file for all.

    Attributes:
        num_tensors: Weights written so far.
        num_bytes: Their bytes.
    """

    def __init__(self, folder: Path, stem: str, *, limit: int | None) -> None:
        self.folder, self.stem, self.limit = folder, stem, limit
        self.num_tensors = self.num_bytes = 0
        self._held: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []

    def add(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Add weights that stand together, such as those of a layer.

        Raises:
            CheckpointError: If a file that is full now does not hold what was written.
        """
        if self._held and self.limit and _bytes_of(self._held) + _bytes_of(weights) > self.limit:
            self._write()
        self._held |= {name: tensor.contiguous() for name, tensor in weights.items()}

    def finish(self) -> list[Path]:
        """Write what is left, give the files their names and, where there are several, their index.

        Returns:
            The weight files.

        Raises:
            CheckpointError: If a file does not hold what was written.
        """
        self._write()
        count = len(self._files)
        if count == 1:
            return [self._unnamed(1).rename(self.folder / f"{self.stem}.safetensors")]
        paths = [
            self._unnamed(number).rename(self.folder / f"{self.stem}-{number:05d}-of-{count:05d}.safetensors")
            for number in range(1, count + 1)
        ]
        index = {
            "metadata": {"total_size": self.num_bytes},
            "weight_map": {
                name: path.name for path, names in zip(paths, self._files, strict=True) for name in names
            },
        }
        path = self.folder / f"{self.stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return paths

    def _unnamed(self, number: int) -> Path:
        return self.folder / f"{self.stem}-{number:05d}.unfinished"

    def _write(self) -> None:
        weights, self._held = self._held, {}
        self._files.append(list(weights))
        path = self._unnamed(len(self._files))
        save_file(weights, path, metadata={"format": "pt"})
        with safe_open(path, framework="pt") as saved:
            if set(saved.keys()) != set(weights):
                raise CheckpointError(f"{path} does not hold the tensors that were written to it")
            for name, tensor in weights.items():
                found = saved.get_tensor(name)
                if found.dtype != tensor.dtype or not _same_bits(found, tensor):
                    raise CheckpointError(f"{path} does not hold {name} as it was written")
        self.num_tensors += len(weights)
        self.num_bytes += _bytes_of(weights)


def _bytes_of(weights: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in weights.values())


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    # Not by value: a run that ended badly may hold a NaN, which is written as well as any number.
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
