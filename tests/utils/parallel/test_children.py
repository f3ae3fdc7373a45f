"""A stage as a process of its own: signals are handed on, and it does not outlive the loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamic_dpo.utils.parallel.children import command_line, run_child

WAITS = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
LOOP = """
import sys
from dynamic_dpo.utils.parallel.children import run_child
from dynamic_dpo.utils.signals import Interrupted, stop_signals
try:
    with stop_signals():
        run_child([sys.executable, "-c", sys.argv[1], sys.argv[2]])
except Interrupted as stop:
    print("stopped", stop.exit_code)
"""
ENDS_IN_ORDER = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1] + ".ended").write_text(str(number))
    raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGHUP, stop)
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
time.sleep(60)
"""


def started(code: str, place: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a process whose child waits; returns it and the child's id."""
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP, code, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        # What started the tests may ignore it.
        preexec_fn=lambda: [
            signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)
        ],
    )
    for _ in range(600):
        if place.exists() and place.read_text():
            return loop, int(place.read_text())
        time.sleep(0.05)
    loop.kill()
    raise AssertionError("the child did not begin")


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_childs(code: int) -> None:
    assert run_child([sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_a_child_that_a_signal_ended_has_a_negative_code() -> None:
    assert run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_handed_on_and_the_childs_end_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    loop, child = started(ENDS_IN_ORDER, tmp_path / "child")
    loop.send_signal(number)
    output, _ = loop.communicate(timeout=30)
    assert output.strip() == f"stopped {128 + number}"
    assert (tmp_path / "child.ended").read_text() == str(int(number))
    assert not lives(child)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_child_does_not_outlive_a_loop_that_is_killed(tmp_path: Path) -> None:
    loop, child = started(WAITS, tmp_path / "child")
    assert lives(child)
    loop.kill()
    loop.communicate(timeout=30)
    for _ in range(200):
        if not lives(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child went on")


def test_words_before_the_command_take_the_place_of_the_interpreter() -> None:
    words = command_line("train-dpo", Path("a b.yaml"), "accelerate launch --num_processes 2")
    assert words == [
        "accelerate", "launch", "--num_processes", "2",
        "-m", "dynamic_dpo.cli.main", "train-dpo", "--config", "a b.yaml",
    ]  # fmt: skip
    assert command_line("rollout", Path("a.yaml"))[0] == sys.executable
