"""The scratch folder: shared by nobody, gone at the end."""

import os
import subprocess
import sys
from pathlib import Path

from dynamic_dpo.data.arrow import map_tables, scratch_path, write_json_lines


def run(code, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_scratch_folder_is_removed_when_the_process_ends(tmp_path):
    code = (
        "from dynamic_dpo.data.arrow import scratch_path, write_json_lines\n"
        "write_json_lines([b'{}'])\n"
        "print(scratch_path('x').parent, len(list(scratch_path('x').parent.iterdir())))"
    )
    folder, count = run(code, tmp_path).split()
    assert Path(folder).parent == tmp_path
    assert count == "1"
    assert list(tmp_path.iterdir()) == []


def test_forked_child_leaves_its_parents_folder_alone(tmp_path):
    code = (
        "import os\n"
        "from dynamic_dpo.data.arrow import scratch_path\n"
        "parent = scratch_path('x').parent\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert scratch_path('x').parent != parent\n"
        "    raise SystemExit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print(parent.is_dir())"
    )
    assert run(code, tmp_path).strip() == "True"
    assert list(tmp_path.iterdir()) == []


def test_scratch_names_do_not_repeat():
    assert scratch_path("rows") != scratch_path("rows")


def test_setting_for_tokenizer_threads_is_put_back(monkeypatch):
    def first_column(table, indices):
        import os

        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        return table

    monkeypatch.setattr("dynamic_dpo.data.arrow._MIN_ROWS_PER_PROCESS", 1)
    rows = write_json_lines([b"{}"] * 4)
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM")
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        mapped = map_tables(rows, first_column, features=rows.features, desc="copying", num_proc=2)
        assert mapped[:] == rows[:]
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
