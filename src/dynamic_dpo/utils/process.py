"""Settings of the process that make training on a CPU as fast as its memory and its floats allow.

They change speed and memory only. What `prepare_process` sets comes before the first operation, so that every thread
has it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def prepare_process() -> bool:
    """Flush denormal floats to zero and keep freed memory for the next micro-batch.

    Saturated margins give denormal gradients, which slow CPU matmuls five-fold. And the C library hands large
    blocks back to the system when they are freed: every activation of every micro-batch would be mapped and
    zeroed anew, a tenth of a CPU's training time.

    Returns:
        Whether the machine can flush denormals.
    """
    keep_freed_memory()
    return torch.set_flush_denormal(True)


def keep_freed_memory() -> bool:
    """Let the C library reuse freed blocks of any size; ``False`` where it is not the GNU one or a GPU computes."""
    if not _keeps_blocks():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


class FreedMemory:
    """Gives freed memory back when it has splintered, so that kept blocks do not add up over a long run.

    Micro-batches of 766 and 768 tokens fill each other's blocks badly: what is kept grows by a tenth over some
    sixty of them. Giving all of it back costs the next micro-batch its page faults, about a second for 1.5 GB, and
    happens only once memory has grown by more than `TOLERATED` over what was needed when it was fresh.

    Args:
        resident: Returns the bytes that the process holds; ``None`` where nobody can tell.
        give_back: Gives all freed blocks to the system.

    Attributes:
        times: How often it was given back.

    Example:
        >>> sizes = iter([100, 101, 110, 100, 101])
        >>> memory = FreedMemory(resident=lambda: next(sizes), give_back=lambda: None)
        >>> memory.window = 2
        >>> [memory.check() for _ in range(5)]
        [False, False, True, False, False]
    """

    TOLERATED = 1.03
    window = 8
    """Micro-batches after which what they have needed counts as known."""

    def __init__(
        self,
        resident: Callable[[], int | None] | None = None,
        give_back: Callable[[], object] | None = None,
    ) -> None:
        self.times = 0
        self._resident = resident or resident_bytes
        self._give_back = give_back or (_trim() if _keeps_blocks() else None)
        self._needed = 0
        self._seen = 0

    def check(self) -> bool:
        """Check after a micro-batch; return whether freed memory was given back."""
        held = self._resident() if self._give_back else None
        if held is None:
            return False
        self._seen += 1
        if self._seen <= self.window:
            # Never less than before: shorter micro-batches do not make longer ones a reason.
            self._needed = max(self._needed, held)
        if held <= self.TOLERATED * self._needed:
            return False
        assert self._give_back is not None
        self._give_back()
        self.times += 1
        self._seen = 0
        return True


def resident_bytes() -> int | None:
    """Return the bytes of memory that this process holds; ``None`` where the system does not say so cheaply."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _keeps_blocks() -> bool:
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        return False
    try:
        library = ctypes.CDLL(None)
    except OSError:
        return False
    return hasattr(library, "mallopt") and hasattr(library, "malloc_trim")


def _trim() -> Callable[[], object]:
    trim = ctypes.CDLL(None).malloc_trim
    trim.argtypes = [ctypes.c_size_t]
    return lambda: trim(0)
