"""How long to wait for a server, and what is no reason to wait."""

from __future__ import annotations

import email.utils
import time

import pytest

from dynamic_dpo.errors import ServerError
from dynamic_dpo.eval.servers.retry import RetryPolicy, retry_after


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setattr("dynamic_dpo.eval.servers.retry.time.sleep", seconds.append)
    return seconds


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after({"retry-after": in_a_minute}) == pytest.approx(60, abs=2)
    long_ago = email.utils.formatdate(0, usegmt=True)
    assert retry_after({"retry-after": long_ago}) == 0.0


@pytest.mark.parametrize("value", ["nan", "inf", "-5"])
def test_a_senseless_retry_after_does_not_stop_the_run(value: str) -> None:
    assert retry_after({"retry-after": value}) in (None, 0.0)


def test_waits_double_up_to_their_limit_however_many_there_are(waits: list[float]) -> None:
    import openai

    def request() -> None:
        raise openai.APIConnectionError(request=None)  # type: ignore[arg-type]

    with pytest.raises(ServerError, match="gave no connection at each of 1501 attempts"):
        RetryPolicy(1500, 1.0, 5.0).call(request)
    assert waits == [1, 2, 4, *[5] * 1497]


def test_an_interruption_is_no_fault_to_be_waited_for(waits: list[float]) -> None:
    def request() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RetryPolicy(3, 1.0, 5.0).call(request)
    assert waits == []
