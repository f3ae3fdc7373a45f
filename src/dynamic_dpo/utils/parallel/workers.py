"""Several threads that take work from one queue and end together.

They end with the last item, when one of them fails, or when a signal comes; what is under way then is waited for.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dynamic_dpo.utils.signals import deferred, raise_if_requested

T = TypeVar("T")
logger = logging.getLogger("dynamic_dpo")


class Workers(Generic[T]):
    """Threads that work through a queue.

    Args:
        work: Called with one item at a time, in several threads.
        on_stop: Called when nothing more is to be begun because of a failure or a signal, so that threads that
            wait for something else come back.
    """

    def __init__(self, work: Callable[[T], None], *, on_stop: Callable[[], None] = lambda: None) -> None:
        self._work, self._on_stop = work, on_stop
        self._queue: deque[T] = deque()
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def run(self, todo: Iterable[T], num_threads: int) -> None:
        """Work through all items; this thread waits.

        Args:
            todo: The items, begun in this order.
            num_threads: Most items under way at a time.

        Raises:
            BaseException: The first that a thread met, or that broke into the waiting, after what is under way has
                ended.
        """
        self._queue.extend(todo)
        # Events, since Python 3.11 takes a running thread for ended once a signal has broken into its join().
        ended = [threading.Event() for _ in range(min(num_threads, len(self._queue)))]
        try:
            with deferred():
                for event in ended:
                    # Daemons: a second Ctrl-C must not wait for a server that hangs.
                    threading.Thread(target=self._run, args=(event,), daemon=True).start()
            raise_if_requested()
            for event in ended:
                event.wait()
        except BaseException:
            self._drop_the_rest()
            logger.warning("stopping when the replies under way are there; once more Ctrl-C stops at once")
            for event in ended:
                event.wait()
            raise
        if self._error is not None:
            raise self._error

    def _run(self, ended: threading.Event) -> None:
        try:
            while True:
                with self._lock:
                    if not self._queue:
                        return
                    item = self._queue.popleft()
                self._work(item)
        except BaseException as error:
            self._drop_the_rest()
            with self._lock:
                self._error = self._error or error
        finally:
            ended.set()

    def _drop_the_rest(self) -> None:
        self._on_stop()
        with self._lock:
            self._queue.clear()
