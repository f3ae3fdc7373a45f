"""Commands as processes of their own: their memory is given back with them, and they resume by their own means."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

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


class Child(NamedTuple):
    """A command to run.

    Attributes:
        name: What to call it.
        words: The command.
        output: File that takes what it prints, appended; ``None`` for where this process prints.
    """

    name: str
    words: Sequence[str]
    output: Path | None = None


def run_child(words: Sequence[str]) -> int:
    """Run a command to its end and return its exit code, negative where a signal has ended it.

    A signal that asks this process to stop is handed on, and the child's own end in order is waited for. Where this
    process is killed, Linux kills the child with it, so that none ever works beside the next.

    Raises:
        Interrupted: If this process was asked to stop, once the child has ended.
    """
    codes: list[int] = []
    run_children([Child("", words)], ended=lambda child, code: codes.append(code))
    return codes[0]


def run_children(
    children: Sequence[Child],
    *,
    places: Sequence[Mapping[str, str]] = ({},),
    alone: Callable[[], bool] = lambda: False,
    begun: Callable[[Child], None] = lambda child: None,
    ended: Callable[[Child, int], None] = lambda child, code: None,
) -> None:
    """Run commands in their order, as many at once as there are places, as `run_child` runs one.

    Args:
        children: The commands.
        places: For each command at once, what it finds in its environment besides.
        alone: Whether the first is to have no other beside it yet; asked again and again until it says no or the
            first has ended.
        begun: Told of each as it begins.
        ended: Told of each as it ends, with its exit code, negative where a signal has ended it.

    Raises:
        Interrupted: If this process was asked to stop, once all children have ended.
    """
    waiting, free = deque(children), deque(places)
    running: dict[subprocess.Popen[bytes], tuple[Child, Mapping[str, str]]] = {}
    handed_on = False
    is_first_alone = True
    try:
        with deferred():
            while running or (waiting and not handed_on):
                is_first_alone = is_first_alone and bool(running or len(waiting) == len(children)) and alone()
                while waiting and free and not handed_on and not (is_first_alone and running):
                    child, place = waiting.popleft(), free.popleft()
                    begun(child)
                    running[_start(child, place)] = child, place
                for process in list(running):
                    code = _wait(process, _SECONDS_BETWEEN_LOOKS / len(running))
                    if code is not None:
                        child, place = running.pop(process)
                        free.append(place)
                        is_first_alone = False
                        ended(child, code)
                number = stop_requested()
                if number is not None and not handed_on:
                    for process in running:
                        process.send_signal(number)
                    handed_on = True
    except BaseException:
        for process in running:
            process.kill()
            process.wait()
        raise
    raise_if_requested()


def _start(child: Child, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with ExitStack() as stack:
        output = None if child.output is None else stack.enter_context(child.output.open("ab"))
        # A session of its own: from a terminal the signal comes through this process alone, and once.
        return subprocess.Popen(
            child.words,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env={**os.environ, **place},
            start_new_session=True,
            preexec_fn=_dying_with_parent(),
        )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


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
