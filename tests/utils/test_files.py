"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.utils.files import replacing, write_json, write_text


def test_text_is_written_whole_into_folders_that_are_made(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b.txt", "ünï\n")
    assert path.read_text(encoding="utf-8") == "ünï\n"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def fails(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_fault_in_the_middle_of_writing_leaves_the_old_content(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def lines() -> Iterator[str]:
        yield "new, and"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), replacing(path) as file:
        file.writelines(lines())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_null_for_what_json_cannot_say(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": 0.1 + 0.2}, "e": "NaN"}
    path = write_json(tmp_path / "a.json", value)
    assert json.loads(path.read_text()) == {
        "a": None,
        "b": [None, [1.5, None]],
        "c": {"d": 0.1 + 0.2},
        "e": "NaN",
    }
