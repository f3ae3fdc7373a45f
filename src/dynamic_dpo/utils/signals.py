"""Stopping when asked to: SIGTERM and SIGINT end a run in order, a second one ends it at once.

Inside `stop_signals` a signal raises `Interrupted` where the program stands; work that must not be cut in the middle
is put in `deferred` and looks itself with `stop_requested` or `raise_if_requested`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; what was saved stays.

    A `KeyboardInterrupt`, so that code which catches mistakes does not catch it.

    Attributes:
        signal: The signal's number.
        exit_code: What a shell reports of a program ended by it: 128 + number (143 for SIGTERM, 130 for SIGINT).
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number
        self.exit_code = 128 + number


class _State:
    """What the handler leaves for the program to see; one a process."""

    received: int | None = None
    depth = 0
    owner = 0


_state = _State()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGINT while the block runs, and give both back to whom they belonged.

    The first one raises `Interrupted` in the main thread, or, inside `deferred`, is only noted. The second one ends
    the process at once with code 128 + number: every file is written so that it survives that. Outside the main
    thread, where Python allows no handlers, and inside another such block nothing is done.

    Example:
        >>> with stop_signals():
        ...     stop_requested() is None
        True
    """
    if threading.current_thread() is not threading.main_thread() or _state.owner == os.getpid():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _state.received, _state.depth, _state.owner = None, 0, os.getpid()
    try:
        for number in SIGNALS:
            signal.signal(number, _handle)
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python, and cannot be from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _state.received, _state.owner = None, 0


@contextmanager
def deferred() -> Iterator[None]:
    """Let the block finish what it is doing: inside it, a first signal is noted and nothing raised.

    The block looks for itself, at places where stopping costs nothing. One that ends before it has looked is
    followed by `Interrupted` at the next `raise_if_requested`.
    """
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1


def stop_requested() -> int | None:
    """Return the number of the signal that asked to stop, or ``None``."""
    return _state.received


def raise_if_requested() -> None:
    """Raise `Interrupted` if a signal has asked to stop."""
    if _state.received is not None:
        raise Interrupted(_state.received)


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        # A forked worker has inherited the handler and none of the work: it dies as workers do.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    name = signal.Signals(number).name
    if _state.received is not None:
        _say(f"{name} again: ending at once; what was saved stays")
        os._exit(128 + number)
    _state.received = number
    if not _state.depth:
        raise Interrupted(number)
    _say(f"{name}: finishing what is under way and saving; send it again to end at once")


def _say(message: str) -> None:
    # Not print: the signal may have come in the middle of one.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{message}\n".encode())
