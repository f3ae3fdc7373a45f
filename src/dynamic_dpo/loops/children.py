"""A stage as a process of its own: its memory is given back with it, and it resumes by its own means."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dynamic_dpo.utils.signals import deferred, raise_if_requested, stop_requested

_SECONDS_BETWEEN_LOOKS = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command_line(name: str, settings: Path, launch: str | None = None) -> list[str]:
    """Return the words that run a command of this package with a file of settings.

    Args:
        name: The command, as ``dynamic-dpo`` knows it.
        settings: The file.
        launch: Words before it, such as ``accelerate launch --num_processes 2``; ``None`` for this interpreter.

    Example:
        >>> command_line("train-dpo", Path("a.yaml"), "accelerate launch")[:4]
        ['accelerate', 'launch', '-m', 'dynamic_dpo.cli.main']
    """
    before = [sys.executable] if launch is None else shlex.split(launch)
    return [*before, "-m", "dynamic_dpo.cli.main", name, "--config", str(settings)]


def run_child(words: Sequence[str]) -> int:
    """Run a command to its end and return its exit code, negative where a signal has ended it.

    A signal that asks this process to stop is handed on, and the child's own end in order is waited for. Where this
    process is killed, Linux kills the child with it, so that no second loop ever works beside it.

    Raises:
        Interrupted: If this process was asked to stop, once the child has ended.
    """
    # A session of its own: from a terminal the signal comes through this process alone, and once.
    process = subprocess.Popen(words, start_new_session=True, preexec_fn=_dying_with_parent())
    try:
        with deferred():
            code = _wait(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    raise_if_requested()
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    handed_on = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=_SECONDS_BETWEEN_LOOKS)
        number = stop_requested()
        if number is not None and not handed_on:
            process.send_signal(number)
            handed_on = True


def _dying_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    # Loaded now: between fork and exec nothing may be allocated that a lock guards.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def set_up() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It was killed before the line above.
            os._exit(1)

    return set_up
