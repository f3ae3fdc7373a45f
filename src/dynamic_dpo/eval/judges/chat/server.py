"""One model behind a server that speaks OpenAI's chat protocol: messages in, text and token counts out.

Connects when first asked, with the key of the environment, sends what the server accepts (``capabilities``), and
repeats what may succeed (``retry``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dynamic_dpo.errors import JudgeError, ServerError
from dynamic_dpo.eval.judges.chat.capabilities import Capabilities, Negotiator, request_options
from dynamic_dpo.eval.servers.client import ServerClient, environment_key
from dynamic_dpo.eval.servers.retry import PassingError, RetryPolicy
from dynamic_dpo.utils.secrets import redact, shown_url

REQUEST_TIMEOUT = 120.0
"""Seconds that one attempt may take, whatever the server sends in them."""
QUESTION_DEADLINE = 900.0
"""Seconds that one question may take with all attempts and waits."""


class Usage(NamedTuple):
    """Tokens that one judgement cost, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int


class Token(NamedTuple):
    """One token of a reply and what else might have stood there: texts and log-probabilities in nats."""

    text: str
    alternatives: tuple[tuple[str, float], ...]


class Completion(NamedTuple):
    """One reply.

    Attributes:
        text: The whole reply, keys hidden; empty for a refusal without words.
        usage: Tokens used, ``None`` where the server does not say.
        cut: Whether the reply ended at the limit of tokens.
        tokens: The reply's tokens, where log-probabilities were asked for and given.
    """

    text: str
    usage: Usage | None
    cut: bool
    tokens: tuple[Token, ...] | None


class ChatServer:
    """Ask one model.

    Args:
        model: Its name on the server.
        retry: What to do about faults that may pass.
        base_url: Address of the server; ``None`` for the ``openai`` package's default.
        timeout: Seconds that one attempt may take, from the look-up of the name to the last byte.
        client: A ready ``openai.OpenAI`` client to use instead; set its own ``max_retries`` to 0.
    """

    def __init__(
        self,
        model: str,
        retry: RetryPolicy,
        *,
        base_url: str | None = None,
        timeout: float = REQUEST_TIMEOUT,
        client: Any = None,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.timeout = timeout
        self._given = client
        self._client: ServerClient | None = None
        self._negotiator = Negotiator(retry)
        self._lock = threading.Lock()

    def complete(
        self,
        messages: Callable[[bool], list[dict[str, str]]],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
        logprobs: bool = False,
    ) -> Completion:
        """Ask once, and again after faults that may pass.

        Args:
            messages: Given whether the reply will follow the schema: the messages.
            temperature: Sampling temperature; left out where the server refuses one.
            max_tokens: Longest reply.
            schema: A JSON schema to ask for, in OpenAI's wrapping; left out where the server refuses it.
            logprobs: Whether to ask for log-probabilities; left out where the server refuses them.

        Raises:
            JudgeError: If the server refuses the question, sends no usable reply, or a passing fault
                outlasts the retries.
        """
        create = self._connected()

        def send(used: Capabilities) -> Any:
            options = request_options(
                used, temperature=temperature, max_tokens=max_tokens, schema=schema or {}
            )
            # Half a surrogate pair, as models write them, has no place in UTF-8.
            asked = [
                {key: text.encode("utf-8", "replace").decode() for key, text in message.items()}
                for message in messages(used.json_schema)
            ]
            return self._checked(create(model=self.model, messages=asked, **options))

        wanted = Capabilities(json_schema=schema is not None, logprobs=logprobs)
        try:
            completion, _ = self._negotiator.call(wanted, send)
        except ServerError as error:
            raise JudgeError(str(error)) from None
        return self._read(completion)

    def close(self) -> None:
        """Give the connections back; the next question connects again."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _checked(self, completion: Any) -> Any:
        """Return a reply that holds a message; raise `PassingError` for any other, which may be asked for again."""
        try:
            found = completion.choices[0].message
        except (AttributeError, IndexError, KeyError, TypeError):
            found = None
        if found is None or isinstance(found, str | int | float | list):
            # Some relays report another server's failure under status 200.
            said = getattr(completion, "error", None)
            raise PassingError(
                "an answer without an error and without a chat completion "
                f"({redact(str(said))[:300] if said else type(completion).__name__}; check base_url, "
                f"{shown_url(self.base_url)}, and the model's name)"
            )
        return completion

    def _read(self, completion: Any) -> Completion:
        choice = completion.choices[0]
        message = choice.message
        # A refusal has no content: that is a reply without a verdict, not a fault.
        text = _text(getattr(message, "content", None)) or _text(getattr(message, "refusal", None))
        used = getattr(completion, "usage", None)
        counts = [_count(getattr(used, name, None)) for name in Usage._fields]
        return Completion(
            redact(text),
            Usage(*counts) if any(counts) else None,
            getattr(choice, "finish_reason", None) == "length",
            _tokens(choice),
        )

    def _connected(self) -> Callable[..., Any]:
        if self._given is not None:
            return self._given.chat.completions.create  # type: ignore[no-any-return]
        with self._lock:
            if self._client is None:
                try:
                    self._client = ServerClient(
                        base_url=self.base_url,
                        key=environment_key("OPENAI_API_KEY", purpose="the judge"),
                        deadline=self.timeout,
                    )
                except ServerError as error:
                    raise JudgeError(str(error)) from None
            return self._client.chat_completion


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for what is none, as servers that do not count send it."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(content: Any) -> str:
    """Return a message's content as text; some servers give a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tokens(choice: Any) -> tuple[Token, ...] | None:
    """Return the tokens with their alternatives, ``None`` where a server gives none or in an older form."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    if not content:
        return None
    try:
        return tuple(
            Token(
                token.token,
                tuple((other.token, float(other.logprob)) for other in token.top_logprobs or [token]),
            )
            for token in content
        )
    except (AttributeError, TypeError, ValueError):
        return None
