"""The settings of the engine ``server``: where a server is, how it is asked, how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.secrets import is_secret_name, shown_url
from dynamic_dpo.utils.settings import check_settings, documented, setting

ServerMode = Literal["chat", "completions"]

# What the engine itself says in every request.
_OWN_KEYS = ("model", "messages", "prompt", "n", "seed", "stream", "return_token_ids")


@documented()
@dataclass(frozen=True)
class ServerSettings:
    """A server that speaks OpenAI's protocol, and how it is asked."""

    base_url: str | None = setting(
        None,
        "Address of the server, often ending in /v1; needed by engine server.",
        key="generation.server.base_url",
        not_empty=True,
    )
    mode: ServerMode = setting(
        "chat",
        "chat: messages, which the server renders by its own template; completions: text, or token ids where "
        "tokenizer is set.",
        key="generation.server.mode",
    )
    tokenizer: str | None = setting(
        None,
        "Hub name or folder of the tokenizer that renders prompts here, once, to be sent as token ids, as vLLM, "
        "SGLang and llama.cpp take them; mode completions only.",
        key="generation.server.tokenizer",
        not_empty=True,
    )
    api_key_env: str | None = setting(
        None,
        "Name of the environment variable that holds the server's key, such as OPENAI_API_KEY; null: none is sent.",
        key="generation.server.api_key_env",
        not_empty=True,
    )
    concurrency: int = setting(8, "Questions under way at a time.", key="generation.server.concurrency", ge=1)
    timeout: float = setting(
        600.0,
        "Seconds that one question may take, from its first byte to the last of the answer.",
        key="generation.server.timeout",
        gt=0,
    )
    max_retries: int = setting(
        5,
        "Further tries after a time-out, a rate limit, a failing server or an unusable reply.",
        key="generation.server.max_retries",
        ge=0,
    )
    initial_backoff: float = setting(
        1.0, "Seconds before the first further try.", key="generation.server.initial_backoff", gt=0
    )
    max_backoff: float = setting(
        60.0,
        "Most seconds between two tries, where the server asks for no other wait.",
        key="generation.server.max_backoff",
        gt=0,
        at_least="initial_backoff",
    )
    token_ids: bool = setting(
        False,
        "Ask for the outputs' token ids (return_token_ids, as vLLM has it) and keep them.",
        key="generation.server.token_ids",
    )
    extra_body: dict[str, Any] | None = setting(
        None,
        "Further parameters of every request, such as top_k; a null takes one of ours out.",
        key="generation.server.extra_body",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.base_url is not None:
            address = urlsplit(self.base_url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ConfigError(
                    "generation.server.base_url must be an address such as http://127.0.0.1:8000/v1, got "
                    f"{shown_url(self.base_url)!r}"
                )
            if "@" in address.netloc or address.query:
                # The value is not shown: this message may end in a log.
                raise ConfigError(
                    "generation.server.base_url holds a user name, a password or a query, and settings are saved "
                    "with the results: take it out, and name the key's environment variable in api_key_env"
                )
        if self.tokenizer is not None and self.mode != "completions":
            raise ConfigError(
                "generation.server.tokenizer has no effect while generation.server.mode is chat: leave it out, or "
                "set mode to completions"
            )
        if self.api_key_env is not None and not (
            self.api_key_env.isidentifier() and is_secret_name(self.api_key_env)
        ):
            # It may be the key itself, and what stands under no telling name is hidden nowhere.
            raise ConfigError(
                "generation.server.api_key_env must be the name of an environment variable that says what it holds, "
                "ending in _API_KEY, _TOKEN or _SECRET (the value given is not shown)"
            )
        self._check_extra_body()

    def _check_extra_body(self) -> None:
        for key in self.extra_body or {}:
            if key in _OWN_KEYS:
                raise ConfigError(f"generation.server.extra_body must not hold {key}, which the engine sets")
            if is_secret_name(key):
                raise ConfigError(
                    f"generation.server.extra_body must not hold {key}: settings are saved with the results; "
                    "name the key's environment variable in generation.server.api_key_env"
                )

    def identity(self) -> dict[str, Any]:
        """Return the settings that a text depends on: not those of speed and patience.

        Example:
            >>> one, two = ServerSettings("http://a/v1", concurrency=1), ServerSettings("http://a/v1", timeout=9.0)
            >>> one.identity() == two.identity()
            True
        """
        return {
            "base_url": self.base_url,
            "mode": self.mode,
            "tokenizer": self.tokenizer,
            "extra_body": self.extra_body,
        }
