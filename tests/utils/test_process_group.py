"""One process group for a command; what ranks say to each other is tested with the commands, on two of them."""

from __future__ import annotations

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
