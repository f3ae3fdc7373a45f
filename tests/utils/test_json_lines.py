"""Files of JSON lines that only grow: what a crash, a full disk, a second process and many threads leave of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.json_lines import JsonLinesFile, iter_json_lines, read_json_lines, read_row


def test_rows_come_back_in_the_order_of_their_writing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with JsonLinesFile(path) as file:
        assert file.rows == []
        for number in range(3):
            file.append({"n": number, "text": "línea\n\u2028two"})
    with JsonLinesFile(path) as file:
        assert [row["n"] for row in file.rows] == [0, 1, 2]
        assert file.rows[0]["text"] == "línea\n\u2028two"


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    with JsonLinesFile(tmp_path / "rows.jsonl") as file:
        file.append({"text": "\ud83d"})
    assert read_json_lines(tmp_path / "rows.jsonl") == [{"text": "\ud83d"}]


def test_a_line_is_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    write, sync = os.write, os.fsync
    with JsonLinesFile(tmp_path / "rows.jsonl") as file:
        monkeypatch.setattr(os, "write", lambda *a: (events.append("write"), write(*a))[1])
        monkeypatch.setattr(os, "fsync", lambda *a: (events.append("sync"), sync(*a))[1])
        file.append({"a": 1})
        events.append("returned")
    assert events == ["write", "sync", "returned"]


def test_every_cut_of_the_last_line_is_repaired_and_kept_beside(tmp_path: Path) -> None:
    whole = b'{"a": 1}\n{"b": 2}\n'
    last = b'{"c": "\xc3\xa9 }"}'
    for length in range(len(last) + 1):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(whole + last[:length])
        assert read_json_lines(path) == [{"a": 1}, {"b": 2}] + [{"c": "é }"}] * (length == len(last))
        with JsonLinesFile(path) as file:
            file.append({"d": 4})
        torn = Path(f"{path}.torn")
        if 0 < length < len(last):
            assert path.read_bytes() == whole + b'{"d": 4}\n'
            assert torn.read_bytes() == last[:length] + b"\n"
        else:
            assert path.read_bytes() == whole + (last + b"\n") * (length == len(last)) + b'{"d": 4}\n'
            assert not torn.exists()


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\0\0\0\n", b"\xff\xfe\n", b"[1]\n", b'{"b": 2\n\n'])
def test_a_last_line_of_rubbish_counts_as_torn(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + tail)
    with JsonLinesFile(path) as file:
        assert file.rows == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n'


def test_rubbish_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b":\n{"c": 3}\n')
    with pytest.raises(DataError, match=r"line 2 of .*rows\.jsonl is no JSON object"):
        JsonLinesFile(path)
    with pytest.raises(DataError, match="line 2"):
        read_json_lines(path)
    assert path.read_bytes() == b'{"a": 1}\n{"b":\n{"c": 3}\n'


def test_empty_files_and_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")
    assert read_json_lines(path) == []
    path.write_bytes(b'\n{"a": 1}\n\n')
    with JsonLinesFile(path) as file:
        file.append({"b": 2})
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.jsonl: No such file"):
        read_json_lines(tmp_path / "gone.jsonl")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cannot write {tmp_path}: Is a directory"):
        JsonLinesFile(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("dynamic_dpo.utils.json_lines.fcntl.flock", no_locks)
    with pytest.raises(DataError, match=r"cannot lock .*rows\.jsonl \(No locks available\)"):
        JsonLinesFile(tmp_path / "rows.jsonl")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write = os.write
    calls = []

    def half_then_full(file: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[:4])

    with JsonLinesFile(path) as file:
        file.append({"a": 1})
        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(OSError, match="No space left"):
            file.append({"b": 2})
        monkeypatch.undo()
        file.append({"c": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"c": 3}\n'


def test_a_second_process_gets_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys\nfrom dynamic_dpo.errors import DataError\n"
        "from dynamic_dpo.utils.json_lines import JsonLinesFile\n"
        "try:\n    JsonLinesFile(sys.argv[1])\nexcept DataError as error:\n    print(error)\n"
    )
    with JsonLinesFile(path):
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert "is being written by another process: wait for it" in result.stdout
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonLinesFile(path) as file:
        threads = [
            threading.Thread(
                target=lambda t=t: [file.append({"t": t, "n": n, "x": "x" * 5000}) for n in range(10)]
            )
            for t in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = read_json_lines(path)
    assert sorted((row["t"], row["n"]) for row in rows) == [(t, n) for t in range(8) for n in range(10)]


def test_a_closed_file_takes_nothing(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.append({})


def test_of_the_rows_that_are_there_the_wanted_keys_alone_are_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonLinesFile(path) as file:
        file.append({"id": "a", "text": "x" * 1000})
        file.append({"text": "y"})
    with JsonLinesFile(path, keep=("id",)) as file:
        assert file.rows == [{"id": "a"}, {}]
        file.append({"id": "b", "text": "z"})
    assert [row["text"][:1] for row in read_json_lines(path)] == ["x", "y", "z"]


def test_several_rows_are_synced_once_and_found_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    syncs: list[int] = []
    sync = os.fsync
    with JsonLinesFile(path) as file:
        monkeypatch.setattr(os, "fsync", lambda *a: (syncs.append(1), sync(*a))[1])
        file.append_all({"n": number, "text": "é" * number} for number in range(5))
        assert len(syncs) == 1
    path.write_bytes(path.read_bytes() + b"\n" + b'{"torn": ')
    placed = list(iter_json_lines(path))
    assert [row["n"] for row, _, _ in placed] == list(range(5))
    assert [read_row(path, start, end) for _, start, end in placed] == [row for row, _, _ in placed]
    with pytest.raises(DataError, match="begins no JSON object"):
        read_row(path, placed[1].start + 2, placed[1].end)
