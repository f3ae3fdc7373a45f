"""The ranks of a launched command: they open one process group, decide on its first rank, speak once and close it.

Without a launcher everything here is the identity.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from dynamic_dpo.errors import DynamicDPOError

T = TypeVar("T")

# Of closing, after an error. The other ranks may be waiting for this one, and their devices for theirs.
LONGEST_CLOSING = 20.0
# Whether this process has opened a group by `process_group` and left it.
_left_group = False


def is_first_rank() -> bool:
    """Return whether this is the first process of a launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def on_first_rank(function: Callable[[], T]) -> T:
    """Run ``function`` on the first rank; every rank returns its result or raises its error.

    Only errors of ours travel; any other ends the first rank and, with it, the others. Collective over ranks.
    """
    if not _is_open():
        return function()
    import torch

    box: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = function()
        except DynamicDPOError as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


@contextmanager
def process_group(
    *, timeout: float = 1800.0, backend: str | None = None, cpu: bool = False
) -> Iterator[None]:
    """Open the process group of a launched command, and close it at the block's end, after an error too.

    It is there before the first file is read: ranks can agree on what is in it, and transformers knows which of them
    reads a model's weights. Left open, it may abort a process that has done all its work. A group that is open
    already stays open.

    Args:
        timeout: Seconds after which a rank that waits for another gives up.
        backend: A backend of `torch.distributed`; by default what the devices take.
        cpu: Whether the ranks compute on CPUs although there are GPUs.

    Raises:
        DynamicDPOError: What the block raises; ``said`` is set where another rank has raised the same.
    """
    global _left_group
    opens = "RANK" in os.environ and not _is_open()
    if opens:
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        PartialState(cpu=cpu, timeout=timedelta(seconds=timeout), backend=backend)
        _left_group = True
    try:
        yield
    except BaseException as error:
        if isinstance(error, DynamicDPOError) and "said" not in vars(error):
            error.said = _is_said(str(error))
        if opens:
            closing = threading.Thread(target=_close, daemon=True)
            closing.start()
            closing.join(LONGEST_CLOSING)
        raise
    if opens:
        _close()


def end_process(status: int) -> int:
    """End a command's process where `process_group` was used in it; else return the exit status.

    gloo's threads live on after the group is closed, as long as PyTorch's own caches refer to it, and the last steps
    of the interpreter take away what they stand on: a run with all its work done and saved ended with SIGABRT now and
    then (https://github.com/pytorch/pytorch/pull/179291). These steps are left out. What is registered for the end of
    a process is done before, as trackers need it for their last entries.
    """
    if not _left_group:
        return status
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # Nobody reads it any more, or it is closed.
            stream.flush()
    os._exit(status)


def _is_open() -> bool:
    # Not imported for it: a wrong setting is said without waiting for torch.
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _is_said(sentence: str) -> bool:
    """Return whether another rank has come here with the same sentence before this one did."""
    if not _is_open():
        return False
    from torch.distributed.distributed_c10d import _get_default_store

    key = f"dynamic_dpo/said/{hashlib.sha256(sentence.encode()).hexdigest()}"
    try:
        return bool(_get_default_store().add(key, 1) > 1)
    except RuntimeError:  # The rank that kept count is gone: better twice than never.
        return False


def _close() -> None:
    import torch

    if _is_open():
        torch.distributed.destroy_process_group()
