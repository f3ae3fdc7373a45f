"""Which faults of a server may pass, and how long to wait for it.

Only what can succeed is repeated: 429, 5xx, time-outs, broken connections and broken JSON. A refused key, a bad
request or a used-up quota fails at once, with what to do about it. The repeating itself is tenacity's.
"""

from __future__ import annotations

import email.utils
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
)

from dynamic_dpo.errors import ConfigError, ServerError
from dynamic_dpo.utils.secrets import redact

T = TypeVar("T")
LONGEST_WAIT = 3600.0
"""Seconds after which a request is not repeated any more where nobody says otherwise; a server may ask for days."""
logger = logging.getLogger("dynamic_dpo")


class ServerNames(NamedTuple):
    """What messages call a server and the settings that it is asked with.

    Attributes:
        server: The server itself.
        section: Section of its settings in a file.
        key: What to do about a refused key.
        later: What to do where the faults do not pass.
        request: The settings that a refused request may be due to.
    """

    server: str = "the judge's server"
    section: str = "gpt4_oracle"
    key: str = "set the environment variable OPENAI_API_KEY to one that may use this model"
    later: str = "try later, or raise gpt4_oracle.max_retries and max_backoff"
    request: str = "gpt4_oracle.model, max_tokens, temperature and base_url"


_JUDGE = ServerNames()


class RefusedError(ServerError):
    """The server will not answer this request, however often it is asked.

    Attributes:
        status: The HTTP status.
        words: The server's own message, without keys.
    """

    def __init__(self, status: int, words: str, names: ServerNames) -> None:
        super().__init__(refusal(status, words, names))
        self.status = status
        self.words = words


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to wait.

    Args:
        max_retries: Repetitions after the first attempt, at least 0.
        initial_backoff: Seconds before the first repetition; doubles with each.
        max_backoff: Longest wait of our own choice, in seconds. A server's Retry-After is kept in full, or, where it
            goes beyond the deadline, not waited for at all.
        names: What messages call the server.
        deadline: Seconds from the first attempt within which the last one begins.

    Raises:
        ConfigError: If a number is out of range.
    """

    max_retries: int
    initial_backoff: float
    max_backoff: float
    names: ServerNames = _JUDGE
    deadline: float = LONGEST_WAIT

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ConfigError(f"{self.names.section}.max_retries must be at least 0, got {self.max_retries}")
        if not 0 <= self.initial_backoff <= self.max_backoff:
            raise ConfigError(
                f"{self.names.section}.initial_backoff must lie between 0 and max_backoff "
                f"({self.max_backoff}), got {self.initial_backoff}"
            )

    def call(
        self,
        request: Callable[[], T],
        *,
        is_final: Callable[[int, str, int], bool] | None = None,
        stopping: threading.Event | None = None,
    ) -> T:
        """Return what ``request`` returns, repeating it after faults that may pass.

        Args:
            request: One call of the ``openai`` client, whose own retries are off. It may raise `PassingError` too.
            is_final: Given the status and words of a fault that may pass, and the number of the attempt from 0:
                whether not to repeat the request all the same.
            stopping: Once it is set, nothing is repeated any more and no wait goes on.

        Returns:
            The first answer.

        Raises:
            RefusedError: At once for a fault that cannot pass.
            ServerError: When the retries are used up.
        """
        import openai

        attempts = itertools.count()

        def ask() -> T:
            attempt = next(attempts)
            try:
                return request()
            except openai.APIStatusError as error:
                # Some servers repeat the whole question in their error.
                words = redact(server_words(error))[:500]
                final = is_final is not None and is_final(error.status_code, words, attempt)
                if final or not may_pass(error.status_code, error.body):
                    raise RefusedError(error.status_code, words, self.names) from None
                asked = retry_after(error.response.headers)
                raise PassingError(f"status {error.status_code}", asked) from None
            except (ValueError, RecursionError, openai.APIResponseValidationError):
                # Not only broken JSON: a number of 5,000 digits or 100,000 brackets cannot be read either.
                fault = "a reply that is no JSON (is base_url the address of an OpenAI-compatible API?)"
                raise PassingError(fault) from None
            except openai.APIConnectionError as error:
                timed_out = isinstance(error, openai.APITimeoutError)
                raise PassingError("a time-out" if timed_out else "no connection") from None

        own_wait = wait_exponential(multiplier=self.initial_backoff, max=self.max_backoff)

        def wait(state: RetryCallState) -> float:
            asked = _fault_of(state).asked
            return own_wait(state) if asked is None else asked

        def warn(state: RetryCallState) -> None:
            assert state.next_action is not None
            seconds = state.next_action.sleep
            logger.warning("%s gave %s; asking again in %.1f s", self.names.server, _fault_of(state), seconds)

        def give_up(state: RetryCallState) -> NoReturn:
            fault = _fault_of(state)
            within = ""
            if state.attempt_number <= self.max_retries:
                asked = "" if fault.asked is None else f" and asks to wait {fault.asked:,.0f} s"
                within = f"{asked}, and no further one could begin within {self.deadline:,.0f} s"
            raise ServerError(
                f"{self.names.server} gave {fault} at each of {state.attempt_number} attempts{within}; "
                f"{self.names.later}"
            )

        def sleep(seconds: float) -> None:
            if stopping is None:
                time.sleep(seconds)
            elif stopping.wait(seconds):
                raise ServerError(f"{self.names.server} was being waited for when the work was stopped")

        retrying = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self.max_retries + 1) | stop_before_delay(self.deadline),
            wait=wait,
            before_sleep=warn,
            retry_error_callback=give_up,
            sleep=sleep,
        )
        return retrying(ask)


class PassingError(Exception):
    """A fault that may pass, in words, and the seconds that the server asks to wait, if it does."""

    def __init__(self, fault: str, asked: float | None = None) -> None:
        super().__init__(fault)
        self.asked = asked


def _fault_of(state: RetryCallState) -> PassingError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, PassingError)
    return error


def server_words(error: Any) -> str:
    """Return what the server itself said, as text."""
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        parameter = body.get("param")
        return f"{body['message']} ({parameter})" if isinstance(parameter, str) else str(body["message"])
    return str(error.message)


def may_pass(status: int, body: object) -> bool:
    """Return whether asking again can succeed.

    >>> may_pass(503, None), may_pass(401, None), may_pass(429, {"code": "insufficient_quota"})
    (True, False, False)
    """
    # A used-up quota comes as a 429 too, and no waiting brings it back.
    used_up = isinstance(body, Mapping) and body.get("code") == "insufficient_quota"
    return status == 408 or status >= 500 or (status == 429 and not used_up)


def refusal(status: int, message: str, names: ServerNames) -> str:
    """Return what to tell the user about a request that the server refuses for good."""
    if status in (401, 403):
        # The server's own text is left out: some quote the key they were given.
        return f"{names.server} refused the key (status {status}): {names.key}"
    if status == 429:
        return f"{names.server} says that the quota is used up: add credit, or use another key or model"
    if 300 <= status < 400:
        return (
            f"{names.server} sends elsewhere (status {status}), where neither key nor prompts are sent: give the "
            "final address as base_url, if you trust it"
        )
    return (
        f"{names.server} refused the request (status {status}) and would again: {message}; "
        f"check {names.request}"
    )


def retry_after(headers: Mapping[str, Any]) -> float | None:
    """Return the seconds that a reply asks to wait, ``None`` where it names none or nonsense.

    >>> retry_after({"retry-after": "2.5"}), retry_after({}), retry_after({"retry-after": "soon"})
    (2.5, None, None)
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())
