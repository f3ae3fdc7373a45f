"""Threads that work through a queue and end together."""

from __future__ import annotations

import threading
import time

import pytest

from dynamic_dpo.utils.parallel.workers import Workers


def test_every_item_is_worked_on_once_by_so_many_threads() -> None:
    done: list[int] = []
    at_once, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
            done.append(item)

    Workers(work).run(range(30), 3)
    assert sorted(done) == list(range(30))
    assert most == 3
    Workers(work).run([], 3)


def test_after_a_failure_nothing_is_begun_and_what_is_under_way_ends() -> None:
    begun: list[int] = []
    ended: list[int] = []
    stopped = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise ValueError("the second")
        assert stopped.wait(5)
        ended.append(item)
        raise ValueError("a later one")

    with pytest.raises(ValueError, match="the second"):
        Workers(work, on_stop=stopped.set).run(range(10), 2)
    assert (begun, ended) == ([0, 1], [0])
