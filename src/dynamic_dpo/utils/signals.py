"""Stopping when asked to: SIGTERM, SIGINT and SIGHUP end a run in order, a second one ends it at once.

Inside `stop_signals` a signal raises `Interrupted` where the program stands; work that must not be cut in the middle
is put in `deferred` and looks itself with `stop_requested` or `raise_if_requested`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Windows knows no SIGHUP.
_HANG_UP: int | None = getattr(signal, "SIGHUP", None)
SIGNALS = tuple(number for number in (signal.SIGTERM, signal.SIGINT, _HANG_UP) if number is not None)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; what was saved stays.

    A `KeyboardInterrupt`, so that code which catches mistakes does not catch it.

    Attributes:
        signal: The signal's number.
        exit_code: What a shell reports of a program ended by it: 128 + number (143 for SIGTERM, 130 for SIGINT, 129
            for SIGHUP).
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
    terminals: tuple[int, ...] = ()


_state = _State()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Handle SIGTERM, SIGINT and SIGHUP while the block runs, and give them back to whom they belonged.

    The first one raises `Interrupted` in the main thread, or, inside `deferred`, is only noted. The second one ends
    the process at once with code 128 + number: every file is written so that it survives that. Outside the main
    thread, where Python allows no handlers, and inside another such block nothing is done.

    SIGINT and SIGHUP stay ignored where they are: a shell starts its background jobs so that Ctrl-C passes them by,
    and ``nohup`` what shall outlive its terminal. A terminal that hangs up is written to no more.

    Example:
        >>> with stop_signals():
        ...     stop_requested() is None
        True
    """
    if threading.current_thread() is not threading.main_thread() or _state.owner == os.getpid():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS if not _stays_ignored(number)}
    _state.received, _state.depth, _state.owner = None, 0, os.getpid()
    _state.terminals = tuple(number for number in (1, 2) if os.isatty(number))
    try:
        for number in before:
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


def _stays_ignored(number: int) -> bool:
    return number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        # A forked worker has inherited the handler and none of the work: it dies as workers do.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    name = signal.Signals(number).name
    if number == _HANG_UP:
        _leave_lost_terminals()
        if _state.received is not None:
            # One hang-up may come twice, from the shell and from the system, and after a SIGTERM at a logout.
            return
    if _state.received is not None:
        _say(f"{name} again: ending at once; what was saved stays")
        os._exit(128 + number)
    _state.received = number
    if not _state.depth:
        raise Interrupted(number)
    _say(f"{name}: finishing what is under way and saving; send it again to end at once")


def _leave_lost_terminals() -> None:
    """Send what is still said to nowhere if the terminal is gone: each line would be an error, also while saving."""
    lost = [number for number in _state.terminals if not os.isatty(number)]
    if lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in lost:
            os.dup2(nowhere, number)
        os.close(nowhere)


def _say(message: str) -> None:
    # Not print: the signal may have come in the middle of one. Who reads it may be gone, and that stops nothing.
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{message}\n".encode())
