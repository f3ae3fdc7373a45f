"""Shards of a checkpoint: read as data alone, whoever wrote them."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.trainers.checkpoints.file_list import write_file_list
from dynamic_dpo.trainers.checkpoints.shards import MODEL_SHARDS, ModelShards, check_shards
from dynamic_dpo.trainers.checkpoints.whole import WholeCheckpoints, clear_disk_errors, clear_reading_errors

pytestmark = pytest.mark.filterwarnings("ignore:.*a single process")
WEIGHTS = {
    "layer.weight": torch.arange(6.0).reshape(2, 3),
    "layer.bias": torch.tensor([1.5], dtype=torch.bfloat16),
}


class Call:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-1"
    for name, content in {
        MODEL_SHARDS: {"model": WEIGHTS},
        "optimizer_0": {"optimizer": {"lr": 5e-7, "betas": (0.9, 0.99), "step": torch.tensor(3.0)}},
    }.items():
        dcp.save(content, storage_writer=dcp.FileSystemWriter(folder / name), no_dist=True)
    return folder


def rewrite(path: Path, change: Callable[[Metadata], object]) -> None:
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(content) or content))


def test_honest_shards_pass_and_give_back_their_weights(checkpoint: Path) -> None:
    check_shards(checkpoint)
    shards = ModelShards(checkpoint)
    assert shards.names == list(WEIGHTS)
    assert shards.shape("layer.weight") == (2, 3)
    loaded = shards.load(["layer.bias"]) | shards.load(["layer.weight"])
    for name, value in WEIGHTS.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


@pytest.mark.parametrize(
    "function", [print, eval, exec, getattr, subprocess.check_output, shutil.rmtree, torch.load]
)
@pytest.mark.parametrize("folder", [MODEL_SHARDS, "optimizer_0"])
def test_a_call_in_the_list_of_shards_is_refused_and_not_made(
    function: Callable[..., Any], folder: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        checkpoint / folder / ".metadata", lambda found: setattr(found, "planner_data", Call(function, "1"))
    )
    with pytest.raises(
        CheckpointError, match=r"is not to be trusted \(.*asks for .*\): nothing of it is used"
    ):
        check_shards(checkpoint)
    assert capsys.readouterr().out == ""


def test_a_call_in_a_plain_value_is_refused_and_not_made(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkpoint / "optimizer_0")
    content = {"optimizer": {"lr": Call(print, "called")}}
    dcp.save(content, storage_writer=dcp.FileSystemWriter(checkpoint / "optimizer_0"), no_dist=True)
    # What it does where nobody looks: torch reads such a value as a pickle.
    dcp.load({"optimizer": {"lr": 0.0}}, checkpoint_id=checkpoint / "optimizer_0", no_dist=True)
    assert capsys.readouterr().out == "called\n"
    with pytest.raises(CheckpointError, match=r"optimizer\.lr in .* is neither a tensor nor a plain value"):
        check_shards(checkpoint)
    assert capsys.readouterr().out == ""


def test_resuming_looks_before_torch_does(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))
    write_file_list(checkpoint)
    assert WholeCheckpoints(alone).verified(str(checkpoint)) == str(checkpoint)
    rewrite(
        checkpoint / "optimizer_0" / ".metadata", lambda found: setattr(found, "version", Call(print, "1"))
    )
    write_file_list(checkpoint)
    with pytest.raises(CheckpointError, match="is not to be trusted"):
        WholeCheckpoints(alone).verified(str(checkpoint))
    assert capsys.readouterr().out == ""


def leave_the_folder(found: Metadata) -> None:
    for place in found.storage_data.values():
        place.relative_path = "../../elsewhere.distcp"


def lose_a_chunk(found: Metadata) -> None:
    found.state_dict_metadata["model.layer.weight"].chunks = [
        ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=torch.Size([1, 3]))
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"\.metadata is missing: without it nobody knows"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is not to be trusted"),
        (lambda path: path.write_bytes(b""), "is not to be trusted"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "is not to be trusted"),
        (lambda path: rewrite(path, leave_the_folder), "is not to be trusted"),
        (lambda path: rewrite(path, lose_a_chunk), r"do not hold all of model\.layer\.weight"),
    ],
)
def test_a_damaged_or_lying_list_is_one_clear_error(
    checkpoint: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(checkpoint / MODEL_SHARDS / ".metadata")
    with pytest.raises(CheckpointError, match=message):
        ModelShards(checkpoint)


def test_a_damaged_shard_is_one_clear_error(checkpoint: Path) -> None:
    (shard,) = (checkpoint / MODEL_SHARDS).glob("*.distcp")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(CheckpointError, match=r"a shard in .* cannot be read"):
        ModelShards(checkpoint).load(["layer.weight"])


def test_what_torch_wraps_in_an_error_of_all_ranks_is_said_as_any_other(tmp_path: Path) -> None:
    def wrapped(error: Exception) -> dcp.CheckpointException:
        return dcp.CheckpointException("write", {1: (error, traceback.extract_stack())})

    with (
        pytest.raises(CheckpointError, match=r"cannot be written to: .*No space left"),
        clear_disk_errors(tmp_path),
    ):
        raise wrapped(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with (
        pytest.raises(CheckpointError, match="cannot be loaded: sizes"),
        clear_reading_errors("checkpoint-1"),
    ):
        raise wrapped(ValueError("sizes"))
    with pytest.raises(ZeroDivisionError), clear_disk_errors(tmp_path):
        raise wrapped(ZeroDivisionError())
