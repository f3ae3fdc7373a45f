"""What a server's reply says of one output: its text, why it ended, its length, and its token ids where asked for.

A reply that says less is a fault of the server, which may pass; it is never taken for an output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamic_dpo.errors import ServerError
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.servers.client import without_key
from dynamic_dpo.eval.servers.retry import PassingError
from dynamic_dpo.utils.secrets import redact

# Ends that are faults of the server and no outputs.
_BROKEN_OFF = ("abort", "error")


class ServedOutput(NamedTuple):
    """One output of a server.

    Attributes:
        text: The output.
        finish_reason: Why it ended, in the server's words.
        num_tokens: Its length as the server counts it, 0 where it does not.
        token_ids: Its ids without the stop token, ``None`` where they were not asked for.
        stop_token_id: The token by which it stopped, where ids were asked for.
    """

    text: str
    finish_reason: str
    num_tokens: int
    token_ids: list[int] | None
    stop_token_id: int | None


def read_completion(reply: Any, server: ServerSettings, key: str | None) -> ServedOutput:
    """Read the JSON of a completion.

    Args:
        reply: As it came; anything.
        server: How it was asked for.
        key: The key that was sent, which is hidden where the reply repeats it.

    Raises:
        PassingError: If the reply holds no completion, or one without an end or of a wrong type.
        ServerError: If token ids were asked for and are not there.
    """
    if isinstance(reply, dict) and reply.get("error"):
        # Some relays report another server's failure under status 200.
        raise PassingError(f"an error under status 200 ({redact(str(reply['error']))[:300]})")
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise PassingError(
            "a reply without a completion (is base_url the address of an OpenAI-compatible API?)"
        )
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason in _BROKEN_OFF:
        raise PassingError(f"a completion with finish_reason {redact(str(reason))[:50]}")
    text = without_key(_text(choice, server.mode), key)
    if server.token_ids:
        ids, stop_id = _token_ids(choice, reason)
        return ServedOutput(text, reason, len(ids), ids, stop_id)
    usage = reply.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return ServedOutput(
        text, without_key(reason, key), counted if isinstance(counted, int) else 0, None, None
    )


def _text(choice: dict[str, Any], mode: str) -> str:
    if mode == "completions":
        text = choice.get("text")
    else:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise PassingError("a chat completion without a message")
        # A refusal has no content; nor has a model that spent all its tokens on reasons.
        text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise PassingError(f"a completion whose text is of type {type(text).__name__}")
    return text


def _token_ids(choice: dict[str, Any], reason: str) -> tuple[list[int], int | None]:
    """Return the ids without the stop token, and the stop token."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ServerError(
            "generation.server.token_ids is true, but the server sends no token_ids: leave it out"
        )
    # As vLLM has it: the ids end with the stop token, unless a text to stop at was met, which is then the reason.
    if reason == "stop" and ids and not isinstance(choice.get("stop_reason"), str):
        return ids[:-1], ids[-1]
    return ids, None
