"""A signal ends a run in order, a second one at once; what is ignored stays so, and handlers are given back."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dynamic_dpo.cli.common import run_command
from dynamic_dpo.engine.reference_store import ReferenceEntry, ReferenceStore, compute_entries, pair_key
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.utils.signals import Interrupted, deferred, raise_if_requested, stop_requested, stop_signals

STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
IGNORABLE = [signal.SIGINT, signal.SIGHUP]
# A command that sends itself signals, each beside work under way, and says whether it was asked to stop.
COMMAND = """
import os, signal, sys
from dynamic_dpo.cli.common import run_command
from dynamic_dpo.utils.signals import deferred, raise_if_requested, stop_requested
def command(argv):
    with deferred():
        for number in argv:
            os.kill(os.getpid(), int(number))
    print("asked", stop_requested(), flush=True)
    raise_if_requested()
    return 0
raise SystemExit(run_command(command, sys.argv[1:]))
"""


def run(*numbers: int, ignoring: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `COMMAND` in a process that ignores a signal or none of them, whatever this one ignores."""

    def inherit() -> None:
        for number, _ in STOPS:
            signal.signal(number, signal.SIG_IGN if number == ignoring else signal.SIG_DFL)

    words = [sys.executable, "-c", COMMAND, *map(str, map(int, numbers))]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, preexec_fn=inherit)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_signal_raises_where_the_program_stands_with_the_shells_code(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as stop, stop_signals():
        send(number)
    assert (stop.value.signal, stop.value.exit_code) == (number, code)
    assert isinstance(stop.value, KeyboardInterrupt)
    assert not isinstance(stop.value, Exception)


def test_deferred_work_is_finished_and_then_told(capfd: pytest.CaptureFixture[str]) -> None:
    finished = False
    with stop_signals():
        with deferred():
            send(signal.SIGTERM)
            finished = True
        assert stop_requested() == signal.SIGTERM
        with pytest.raises(Interrupted):
            raise_if_requested()
    assert finished
    assert "SIGTERM: finishing what is under way" in capfd.readouterr().err
    assert stop_requested() is None
    raise_if_requested()


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number, _ in STOPS]
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        with stop_signals():  # the inner one leaves everything to the outer
            pass
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number, _ in STOPS] == before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with stop_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("number", "code"), STOPS[:2])
def test_a_second_signal_ends_at_once(number: int, code: int) -> None:
    done = run(number, number)
    assert (done.returncode, done.stdout) == (code, "")
    assert "again: ending at once" in done.stderr


def test_a_hang_up_after_a_signal_changes_nothing_and_a_signal_after_it_ends_at_once() -> None:
    for numbers, code in (
        ((signal.SIGHUP, signal.SIGHUP), 129),
        ((signal.SIGTERM, signal.SIGHUP), 143),
    ):
        done = run(*numbers)
        assert (done.returncode, done.stdout) == (code, f"asked {int(numbers[0])}\n")
    done = run(signal.SIGHUP, signal.SIGTERM)
    assert (done.returncode, done.stdout) == (143, "")


@pytest.mark.parametrize("number", IGNORABLE)
def test_what_a_process_was_told_to_ignore_stays_ignored(number: int) -> None:
    done = run(number, number, ignoring=number)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked None\n", "")
    assert run(number, signal.SIGTERM, ignoring=number).returncode == 143


def test_a_sigterm_is_heard_whatever_was_inherited() -> None:
    assert run(signal.SIGTERM, ignoring=signal.SIGTERM).returncode == 143


@pytest.mark.parametrize("number", IGNORABLE)
def test_inside_the_block_an_ignored_signal_has_no_handler(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals():
            assert signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_terminal_that_hangs_up_ends_a_command_in_order(tmp_path: Path) -> None:
    # What is said after the hang-up has nowhere to go, and the work that was under way is finished all the same.
    script = """
import os, pathlib, sys, time
from dynamic_dpo.cli.common import run_command
from dynamic_dpo.utils.signals import deferred, raise_if_requested, stop_requested
def command(argv):
    with deferred():
        print("ready", flush=True)
        for _ in range(1200):
            if stop_requested():
                break
            time.sleep(0.05)
        for stream in (sys.stdout, sys.stderr):
            print("said to nobody", file=stream, flush=True)
        pathlib.Path(argv[0]).write_text("saved")
    raise_if_requested()
    return 0
raise SystemExit(run_command(command, sys.argv[1:]))
"""
    # Forked before anything else runs in the child: a new session whose controlling terminal is the pty.
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", script, str(tmp_path / "work")])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert (tmp_path / "work").read_text() == "saved"


def test_a_forked_worker_dies_of_the_signal_as_workers_do() -> None:
    with stop_signals():
        worker = os.fork()
        if worker == 0:
            send(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
        assert stop_requested() is None


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_command_ends_with_the_documented_code(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> int:
        send(number)
        return 0

    assert run_command(command, []) == code
    assert f"stopped by {signal.Signals(number).name}; what was saved stays" in capsys.readouterr().err


def test_a_command_says_a_full_disk_in_one_line_and_shows_other_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(argv: object) -> int:
        raise OSError(28, "No space left on device", "config.yaml")

    assert run_command(full, []) == 1
    said = capsys.readouterr().err
    assert "error: [Errno 28] No space left on device: 'config.yaml'" in said
    assert "free some space" in said

    def fault(argv: object) -> int:
        raise FileNotFoundError(2, "No such file")

    with pytest.raises(FileNotFoundError):
        run_command(fault, [])


def test_a_reference_pass_stops_after_its_micro_batch_and_keeps_it(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, fingerprint="weights", dtype="float32")
    pairs = PairBatch([[0]] * 4, [[1]] * 4, [[i] for i in range(4)], range(4))
    keys = [pair_key([0], [1], [i]) for i in range(4)]

    def score(part: PairBatch) -> list[ReferenceEntry]:
        if 1 in part.rows:
            send(signal.SIGTERM)
        return [ReferenceEntry(-1.0, -2.0, 1, 1) for _ in part.rows]

    with pytest.raises(Interrupted), stop_signals():
        compute_entries(pairs, [[0, 1], [2], [3]], score, store, keys, progress=lambda _: None)
    again = ReferenceStore(tmp_path, fingerprint="weights", dtype="float32")
    assert [key in again for key in keys] == [True, True, False, False]
