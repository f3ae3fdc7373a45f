"""The scratch folder: shared by nobody, gone at the end, and after a kill when the next process needs one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from dynamic_dpo.utils.scratch import scratch_path

MAKE_ONE = "from dynamic_dpo.utils.scratch import scratch_path\nfolder = scratch_path('x').parent\n"


def run(code, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_scratch_folder_is_removed_when_the_process_ends(tmp_path):
    code = (
        "from dynamic_dpo.data.arrow import write_json_lines\n"
        "from dynamic_dpo.utils.scratch import scratch_path\n"
        "write_json_lines([b'{}'])\n"
        "print(scratch_path('x').parent, len(list(scratch_path('x').parent.glob('*.arrow'))))"
    )
    folder, count = run(code, tmp_path).split()
    assert Path(folder).parent == tmp_path
    assert count == "1"
    assert list(tmp_path.iterdir()) == []


def test_forked_child_leaves_its_parents_folder_alone(tmp_path):
    code = (
        "import os\n"
        "from dynamic_dpo.utils.scratch import scratch_path\n"
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


def test_what_a_killed_process_has_left_is_removed_by_the_next_one(tmp_path):
    kill = "import os, signal\nprint(folder, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run(
        [sys.executable, "-c", MAKE_ONE + kill],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.is_dir()

    run(MAKE_ONE, tmp_path)
    assert left.is_dir()  # So new that it could be a process about to take its lock.
    make_old(left)
    run(MAKE_ONE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_folder_however_old(tmp_path):
    wait = "import sys\nprint(folder, flush=True)\nsys.stdin.read()\nprint(folder.is_dir())"
    with subprocess.Popen(
        [sys.executable, "-c", MAKE_ONE + wait],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as living:
        folder = Path(living.stdout.readline().strip())
        make_old(folder)
        run(MAKE_ONE, tmp_path)
        assert folder.is_dir()
        assert living.communicate("")[0].strip() == "True"
    assert list(tmp_path.iterdir()) == []


def make_old(folder):
    os.utime(folder, (0, 0))
