"""One process group for a command; what ranks say to each other is tested with the commands, on two of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import accelerate
import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils import process_group as module
from dynamic_dpo.utils.process_group import is_first_rank, on_first_rank, process_group


def test_without_a_launcher_nothing_is_opened_and_errors_are_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: pytest.fail("opened a process group"))
    monkeypatch.setattr(module, "_close", lambda: pytest.fail("closed a process group"))
    with process_group():
        assert is_first_rank()
        assert on_first_rank(lambda: 3) == 3
    with pytest.raises(ConfigError, match="wrong") as raised, process_group():
        on_first_rank(lambda: (_ for _ in ()).throw(ConfigError("wrong")))
    assert not raised.value.said


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the group was opened with, once it is, and how often it was closed."""
    seen: dict[str, Any] = {"closed": 0}

    def close() -> None:
        seen["closed"] += 1

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(accelerate, "PartialState", seen.update)
    monkeypatch.setattr(module, "_close", close)
    return seen


def test_a_launched_command_opens_its_group_and_closes_it_however_it_ends(launched: dict[str, Any]) -> None:
    assert not is_first_rank()
    with process_group(timeout=90, backend="gloo", cpu=True):
        assert launched["closed"] == 0
    assert launched["closed"] == 1
    assert (launched["timeout"].seconds, launched["backend"], launched["cpu"]) == (90, "gloo", True)
    for error in (ConfigError("wrong"), ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), process_group():
            raise error
    assert launched["closed"] == 4


def test_a_group_that_cannot_be_closed_does_not_hold_an_error_back(
    launched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(module, "_close", never.wait)
    monkeypatch.setattr(module, "LONGEST_CLOSING", 0.01)
    with pytest.raises(ConfigError, match="wrong"), process_group():
        raise ConfigError("wrong")
    never.set()


RANK = """
import atexit, threading, time
from dynamic_dpo.utils.process_group import end_process, process_group

class Late:
    def __del__(self):
        print("torn down")

late = Late()
atexit.register(print, "last entries sent")
with process_group(cpu=True):
    print("worked")
threading.Thread(target=lambda: (time.sleep(0.2), print("uploaded"))).start()
end_process(3)
"""


def test_a_rank_ends_without_tearing_down_what_threads_of_the_group_stand_on() -> None:
    launch = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-c", RANK],
        env={**os.environ, **launch, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.split("\n") == ["worked", "uploaded", "last entries sent", ""]


def test_a_command_that_nobody_launched_ends_as_any_other() -> None:
    script = f"import os; os.environ.pop('RANK', None)\n{RANK}\nprint('went on')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "torn down"
    assert "went on" in ended.stdout
