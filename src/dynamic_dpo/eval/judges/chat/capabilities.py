"""What a chat server accepts, found out with the first question and kept.

Servers and models differ in the name of the token limit, and refuse a temperature, a JSON schema or
log-probabilities; some with a 400 that names the parameter, some with a 500. A request is sent with all that is
wanted and sent again without what the server seems to refuse.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynamic_dpo.eval.servers.retry import RefusedError, RetryPolicy

logger = logging.getLogger("dynamic_dpo")

_SCHEMA = re.compile(
    r"response_format|json_schema|json schema|grammar|guided|structured output", re.IGNORECASE
)
_LOGPROBS = re.compile(r"log_?probs?|logits_all|log.probabilities", re.IGNORECASE)
# These parameters are also named where only their value is wrong, which no other request would mend.
_UNSUPPORTED = re.compile(
    r"unsupported|n[o']t (?:be )?support|unknown|unrecogni[sz]ed|deprecated|unexpected|not permitted|extra",
    re.IGNORECASE,
)
_TEMPERATURE = re.compile(r"temperature", re.IGNORECASE)
_MAX_TOKENS = re.compile(r"\bmax_tokens\b")


@dataclass(frozen=True)
class Capabilities:
    """What requests may contain.

    Attributes:
        limit_name: Name of the token limit.
        temperature: Whether a temperature may be set.
        json_schema: Whether a JSON schema may be asked for.
        logprobs: Whether log-probabilities may be asked for.
    """

    limit_name: str = "max_tokens"
    temperature: bool = True
    json_schema: bool = True
    logprobs: bool = True


class Negotiator:
    """Sends requests that one server accepts for one model.

    Args:
        retry: What to do about faults that may pass.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self.retry = retry
        # By what was wanted: a server that accepts one request may refuse one with more in it.
        self._found: dict[Capabilities, Capabilities] = {}
        self._lock = threading.Lock()

    def call(self, wanted: Capabilities, send: Callable[[Capabilities], Any]) -> tuple[Any, Capabilities]:
        """Return a server's answer and what the request that got it contained.

        Until the first answer one request is under way at a time, so that a refusal is met once and not by every
        thread.

        Args:
            wanted: What the request should contain.
            send: Sends the request with so much of it.

        Raises:
            RefusedError: If the server refuses the request whatever is left out.
            ServerError: If faults that may pass outlast the retries.
        """
        if wanted not in self._found:
            with self._lock:
                if wanted not in self._found:
                    answer, used = self._find_out(wanted, send)
                    self._found[wanted] = used
                    if used != wanted:
                        logger.warning("the judge's server %s; going on so", _difference(wanted, used))
                    return answer, used
        used = self._found[wanted]
        return self.retry.call(lambda: send(used)), used

    def _find_out(
        self, wanted: Capabilities, send: Callable[[Capabilities], Any]
    ) -> tuple[Any, Capabilities]:
        # A refusal that names a parameter is taken at its word. One that names none may be due to any optional part:
        # they are left out one by one, and sent again if leaving them out did not help.
        trial = wanted
        before_leaving_out: Capabilities | None = None
        did_not_help = False
        first: RefusedError | None = None

        def is_final(status: int, words: str, attempt: int) -> bool:
            if status not in (500, 501) or did_not_help:
                return False
            if before_leaving_out is not None or _named(words, trial) is not None:
                return True
            # One 500 happens to every server; two in a row may mean the request.
            return attempt >= 1 and _without_next(trial) is not None

        while True:
            try:
                return self.retry.call(lambda trial=trial: send(trial), is_final=is_final), trial  # type: ignore[misc]
            except RefusedError as error:
                if error.status not in (400, 422, 500, 501):
                    raise
                named = _named(error.words, trial)
                if named is not None:
                    trial, before_leaving_out = named, None
                    continue
                first = first or error
                smaller = None if did_not_help else _without_next(trial)
                if smaller is not None:
                    before_leaving_out, trial = before_leaving_out or trial, smaller
                elif error.status >= 500 and before_leaving_out is not None:
                    # It fails without them too: a fault of the server, to be waited for like any other.
                    trial, before_leaving_out, did_not_help = before_leaving_out, None, True
                else:
                    raise (error if did_not_help else first) from None


def _named(words: str, trial: Capabilities) -> Capabilities | None:
    """Return the request without what the server's words name as refused, ``None`` where they name nothing."""
    if trial.json_schema and _SCHEMA.search(words):
        return replace(trial, json_schema=False)
    if trial.logprobs and _LOGPROBS.search(words):
        return replace(trial, logprobs=False)
    if not _UNSUPPORTED.search(words):
        return None
    if trial.limit_name == "max_tokens" and _MAX_TOKENS.search(words):
        return replace(trial, limit_name="max_completion_tokens")
    if trial.temperature and _TEMPERATURE.search(words):
        return replace(trial, temperature=False)
    return None


def _without_next(trial: Capabilities) -> Capabilities | None:
    """Return the request without its next optional part, ``None`` where there is none left."""
    if trial.json_schema:
        return replace(trial, json_schema=False)
    if trial.logprobs:
        return replace(trial, logprobs=False)
    return None


def _difference(wanted: Capabilities, used: Capabilities) -> str:
    refused = [
        name
        for name in ("temperature", "json_schema", "logprobs")
        if getattr(wanted, name) != getattr(used, name)
    ]
    renamed = (
        [f"wants {used.limit_name} for {wanted.limit_name}"] if used.limit_name != wanted.limit_name else []
    )
    return " and ".join([*renamed, *([f"refuses {', '.join(refused)}"] if refused else [])])


def request_options(
    used: Capabilities, *, temperature: float, max_tokens: int, schema: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters of a request that may contain so much.

    >>> request_options(Capabilities("max_tokens", True, False, False), temperature=0, max_tokens=9, schema={})
    {'max_tokens': 9, 'temperature': 0}
    """
    options: dict[str, Any] = {used.limit_name: max_tokens}
    if used.temperature:
        options["temperature"] = temperature
    if used.json_schema:
        options["response_format"] = {"type": "json_schema", "json_schema": dict(schema)}
    if used.logprobs:
        options |= {"logprobs": True, "top_logprobs": 5}
    return options
