"""A checkpoint folder exists whole or not at all, and a damaged one is never taken for a whole one."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.trainers.checkpoints.file_list import FILE_LIST, fault_of, write_file_list
from dynamic_dpo.trainers.checkpoints.folders import (
    STAGING,
    check_complete,
    checkpoint_folders,
    clean,
    commit,
    newest_complete,
    rotate,
    set_aside_newer,
    stage,
)
from dynamic_dpo.utils.files import write_refused
from torture.corruption import KINDS, corrupt
from torture.processes import REFUSED, Forked
from torture.tiny_run import build


def write(run: Path, step: int, **files: bytes) -> Path:
    folder = stage(run) / f"checkpoint-{step}"
    (folder / "nested").mkdir(parents=True)
    for name, content in (files or {"weights": b"w" * 100, "nested/state": b"s%d" % step}).items():
        (folder / name).write_bytes(content)
    return commit(run, folder.name)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_a_committed_checkpoint_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert folder == tmp_path / "checkpoint-3"
    assert fault_of(folder) is None
    assert names(tmp_path) == ["checkpoint-3"]
    listed = json.loads((folder / FILE_LIST).read_text())["files"]
    assert {name: entry["size"] for name, entry in listed.items()} == {"weights": 100, "nested/state": 2}
    check_complete(folder)


def test_the_newest_is_by_number_and_foreign_folders_are_none(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert [path.name for path in checkpoint_folders(tmp_path)] == [f"checkpoint-{n}" for n in (10, 9, 2)]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_damaged_checkpoint_is_skipped_and_the_reason_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "checkpoint-3" / FILE_LIST).unlink()
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"w" * 99 + b"v")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint-3 is skipped: it has no manifest.json" in caplog.text
    assert "checkpoint-2 is skipped: weights does not have the content it was written with" in caplog.text


def test_a_run_with_damaged_checkpoints_only_is_an_error_and_one_without_any_is_not(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    folder = write(tmp_path, 1)
    (folder / "weights").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* is whole \(checkpoint-1: weights is missing\)"
    ):
        newest_complete(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be used: weights is missing"):
        check_complete(folder)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from at"):
        check_complete(tmp_path / "checkpoint-7")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 99, "files": {}, "sha256": ""}', "has version 99, this program reads 1"),
        ('{"version": 1, "files": {}, "sha256": ""}', "is damaged"),
    ],
)
def test_a_file_list_that_is_not_its_own_hash_is_no_file_list(
    tmp_path: Path, content: str, fault: str
) -> None:
    folder = write(tmp_path, 1)
    (folder / FILE_LIST).write_text(content)
    assert fault in str(fault_of(folder))


def test_a_file_that_was_added_later_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "notes.txt").write_text("mine")
    assert fault_of(folder) is None
    write_file_list(folder)
    assert "notes.txt" in json.loads((folder / FILE_LIST).read_text())["files"]


def test_rotation_spares_the_newest_the_best_and_what_was_just_committed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        committed = write(tmp_path, step)
    rotate(committed, keep=None)
    assert len(checkpoint_folders(tmp_path)) == 4
    rotate(committed, keep=2, best="elsewhere/checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    rotate(committed, keep=1, best=tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    rotate(committed, keep=1)
    assert names(tmp_path) == ["checkpoint-4"]


def test_rotation_after_a_step_back_removes_the_damaged_newer_one_not_the_whole_older_one(
    tmp_path: Path,
) -> None:
    write(tmp_path, 9)
    (tmp_path / "checkpoint-9" / "weights").unlink()
    committed = write(tmp_path, 7)
    rotate(committed, keep=1)
    assert names(tmp_path) == ["checkpoint-7"]


def test_a_run_that_goes_back_sets_the_later_checkpoints_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    set_aside_newer(tmp_path / "checkpoint-2")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3.set-aside-1"]
    write(tmp_path, 3)
    set_aside_newer(tmp_path / "checkpoint-2")
    assert "checkpoint-3.set-aside-2" in names(tmp_path)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    assert "no longer part of this run" in caplog.text
    write(tmp_path, 4)
    assert len(set_aside_newer(tmp_path / "best-model")) == 0


def test_a_checkpoint_made_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 3, weights=b"old")
    folder = write(tmp_path, 3, weights=b"new")
    assert (folder / "weights").read_bytes() == b"new"
    assert names(tmp_path) == ["checkpoint-3"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 3, weights=b"old")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "checkpoint-3":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 3, weights=b"new")
    monkeypatch.undo()
    assert names(tmp_path) == [STAGING]
    clean(tmp_path)
    assert (tmp_path / "checkpoint-3" / "weights").read_bytes() == b"old"
    assert names(tmp_path) == ["checkpoint-3"]


@pytest.mark.parametrize("kind", KINDS)
def test_corruption_of_a_checkpoint_is_always_seen(tmp_path: Path, kind: str) -> None:
    draw = random.Random(kind)
    for number in range(15):
        run = tmp_path / str(number)
        folder = write(run, 1, weights=draw.randbytes(300), optimizer=draw.randbytes(200), scheduler=b"{}")
        what = corrupt(folder, kind, draw)
        assert fault_of(folder) is not None, what


class LimitAfter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("bytes_allowed", "code"), [(0, REFUSED), (9000, REFUSED), (15_000, REFUSED), (10**7, 0)]
)
def test_a_limit_met_in_the_middle_of_a_save_leaves_the_checkpoint_from_before(
    tmp_path: Path, bytes_allowed: int, code: int
) -> None:
    # A real refusal: torch and safetensors meet it in their own languages and report it under their own names.
    def starved() -> None:
        trainer = build(tmp_path, max_steps=4, save_steps=2, eval_strategy="no")
        trainer.add_callback(LimitAfter(3, bytes_allowed))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        screens = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in screens:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # What is printed is no part of the experiment.
        try:
            trainer.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            for number, screen in screens:
                os.dup2(screen, number)

    output = tmp_path / "output"
    assert Forked(starved, output).wait() == code, output.read_text()[-2000:]
    newest = newest_complete(tmp_path / "run")
    assert newest == tmp_path / "run" / ("checkpoint-2" if code else "checkpoint-4")
    if code:
        assert "cannot be written" in output.read_text()
        assert STAGING not in names(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot be written to"):
            build(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_refusal_is_known_by_its_number_or_by_what_a_foreign_writer_says() -> None:
    assert "read-only" in str(write_refused(OSError(30, "Read-only file system")))
    assert "quota" in str(write_refused(OSError(122, "Disk quota exceeded")))
    assert "permission" in str(write_refused(PermissionError(13, "Permission denied")))
    assert "free some space" in str(
        write_refused(RuntimeError("I/O error: No space left on device (os error 28)"))
    )
    assert "disk is full" in str(
        write_refused(RuntimeError("PytorchStreamWriter failed writing file data/0"))
    )
    assert write_refused(FileNotFoundError(2, "No such file")) is None
    assert write_refused(ValueError("shapes")) is None
