"""A server as an engine: any that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, ``transformers serve``).

One request is one output, with a seed of its own, so that neither order nor interruption changes what belongs to
which prompt. Whether an equal seed gives an equal text again is the server's affair. How many requests are under way
is decided in ``asking``, how a reply is read in ``replies``.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.ready import WrittenModel
from dynamic_dpo.eval.generate.replies import ServedOutput, read_completion
from dynamic_dpo.eval.generate.sampling import row_key
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import Prompt, model_prompt, prompt_key, render_prompt
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.eval.servers.client import ServerClient, environment_key
from dynamic_dpo.eval.servers.retry import PassingError, RefusedError, RetryPolicy, ServerNames
from dynamic_dpo.models.sources import ModelSource, load_tokenizer, resolve_model
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.secrets import redact, redact_values, shown_url

logger = logging.getLogger("dynamic_dpo")

# What a server says of a model and what stays the same while it runs.
_LISTED_KEYS = ("id", "root", "parent", "owned_by", "max_model_len", "meta")
# A refusal with one of these may be due to the prompt: too long, or not what the template takes.
_DUE_TO_THE_PROMPT = (400, 413, 422)
_SHORT_PROMPT = "Hi"


class Asked(NamedTuple):
    """A prompt as the server gets it.

    Attributes:
        prompt: The prompt as the model is to read it; seeds hang on it.
        sent: Messages, text, or token ids.
    """

    prompt: Prompt
    sent: list[dict[str, str]] | str | list[int]


class UnanswerableError(Exception):
    """The server answers others but not this prompt; says why."""


class ServerEngine:
    """One model on a server.

    Args:
        spec: The model; its path is its name there.
        settings: How to write.

    Raises:
        ConfigError: If the settings do not go together with the form of the model's prompts.
        ServerError: If the environment holds no key, or the package ``openai`` is not installed.
        ModelError: If the tokenizer cannot be loaded.
    """

    def __init__(self, spec: ModelSpec, settings: GenerationSettings) -> None:
        server = settings.server
        _check_form(spec, settings)
        self.spec, self.settings = spec, settings
        self.address = shown_url(server.base_url)
        self.tokenizer = _tokenizer_of(server.tokenizer) if server.tokenizer else None
        self._key = environment_key(server.api_key_env, purpose=self.address) if server.api_key_env else None
        self._retry = RetryPolicy(
            server.max_retries, server.initial_backoff, server.max_backoff, _names(settings, self.address)
        )
        self._client = ServerClient(base_url=server.base_url, key=self._key, deadline=server.timeout)
        self._stopping = threading.Event()
        # Whether the server is known to take requests with these settings.
        self._is_accepted = False
        self._probing = threading.Lock()

    def identify(self) -> WrittenModel:
        """Return what identifies the model's outputs: the server's address, what it says of the model, the settings.

        Raises:
            ServerError: If the server cannot be had.
        """
        listed = self.listed()
        template = getattr(self.tokenizer, "chat_template", None)
        identity = {
            "path": self.spec.path,
            "listed": listed,
            "prompt_template": self.spec.prompt_template,
            "prompt_format": self.spec.prompt_format,
            **({} if template is None else {"chat_template_sha256": content_hash(template)}),
            **self.settings.identity("server"),
        }
        return WrittenModel(content_hash(identity), identity)

    def listed(self) -> dict[str, Any] | None:
        """Return what the server says of the model, ``None`` where it lists none of that name or can list none.

        Raises:
            ServerError: If the server cannot be had.
        """

        def look() -> list[Any]:
            found = self._client.get("/models")
            models = found.get("data") if isinstance(found, dict) else None
            if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
                raise PassingError("no list of models (is base_url the address of an OpenAI-compatible API?)")
            return models

        def cannot_list(status: int, words: str, attempt: int) -> bool:
            # `transformers serve` answers so where it has no cache of the hub's models.
            return status == 500 and attempt >= 1

        try:
            models = self._retry.call(look, is_final=cannot_list)
        except RefusedError as error:
            if error.status not in (404, 405, 500, 501):
                raise
            return None
        for model in models:
            if model.get("id") == self.spec.path:
                return redact_values({key: model[key] for key in _LISTED_KEYS if key in model})  # type: ignore[no-any-return]
        names = ", ".join(redact(str(model.get("id"))) for model in models[:10]) or "none"
        logger.warning(
            "%s lists no model %s (it lists: %s); it is asked all the same",
            self.address,
            self.spec.path,
            names,
        )
        return None

    def prepare(self, record: PromptRecord) -> Asked:
        """Return a prompt as it is to be sent.

        Raises:
            UnanswerableError: If the tokenizer's chat template refuses it.
        """
        from jinja2.exceptions import TemplateError

        is_chat = self.settings.server.mode == "chat"
        prompt = model_prompt(
            record.messages,
            template=self.spec.prompt_template,
            prompt_format=self.spec.prompt_format,
            has_chat_template=is_chat or bool(getattr(self.tokenizer, "chat_template", None)),
        )
        if self.tokenizer is not None:
            try:
                return Asked(prompt, render_prompt(self.tokenizer, prompt))
            except TemplateError as error:
                raise UnanswerableError(f"the chat template refuses it: {error}") from None
        if isinstance(prompt, str):
            return Asked(prompt, _in_utf8(prompt))
        return Asked(prompt, [{key: _in_utf8(text) for key, text in turn.items()} for turn in prompt])

    def write(self, asked: Asked, sample: int) -> ServedOutput:
        """Return one output; several threads may call.

        Raises:
            UnanswerableError: If the server refuses this prompt and no other.
            ServerError: If the server refuses the key or the settings, or faults that may pass outlast the retries.
        """
        try:
            output = self._ask(self._body(asked, sample))
        except RefusedError as error:
            if error.status not in _DUE_TO_THE_PROMPT:
                raise
            self._probe()
            raise UnanswerableError(f"the server refuses it (status {error.status}): {error.words}") from None
        self._is_accepted = True
        return output

    def stop(self) -> None:
        """Repeat nothing more; what is under way ends."""
        self._stopping.set()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _probe(self) -> None:
        """Find out whether the server takes anything with these settings; raises its refusal if it does not."""
        with self._probing:
            if not self._is_accepted:
                turn = [{"role": "user", "content": _SHORT_PROMPT}]
                self._ask(self._body(self.prepare(PromptRecord.of(turn)), 0))
                self._is_accepted = True

    def _body(self, asked: Asked, sample: int) -> dict[str, Any]:
        settings, server = self.settings, self.settings.server
        body: dict[str, Any] = {
            "model": self.spec.path,
            "messages" if server.mode == "chat" else "prompt": asked.sent,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature if settings.samples else 0.0,
        }
        if settings.samples:
            # 31 bits of the hash: as much as every server takes.
            seed = row_key(settings.seed, prompt_key(asked.prompt), sample) & (2**31 - 1)
            body |= {"top_p": settings.top_p, "seed": seed}
        if settings.min_new_tokens > 1:
            # As vLLM and SGLang call it. One is not asked for: not every server knows it, and empty outputs are seen.
            body["min_tokens"] = settings.min_new_tokens
        if server.token_ids:
            body["return_token_ids"] = True
        body |= server.extra_body or {}
        return {key: value for key, value in body.items() if value is not None}

    def _ask(self, body: dict[str, Any]) -> ServedOutput:
        path = "/chat/completions" if self.settings.server.mode == "chat" else "/completions"

        def ask() -> ServedOutput:
            return read_completion(self._client.post(path, body), self.settings.server, self._key)

        return self._retry.call(ask, stopping=self._stopping)


def _tokenizer_of(name: str) -> Any:
    folder = Path(name).expanduser()
    # A folder of a tokenizer alone, or of an adapter, holds no model.
    is_alone = (folder / "tokenizer_config.json").is_file()
    return load_tokenizer(ModelSource(name, str(folder)) if is_alone else resolve_model(name))


def _in_utf8(text: str) -> str:
    """Return the text without halves of surrogate pairs, as models write them: they have no place in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _check_form(spec: ModelSpec, settings: GenerationSettings) -> None:
    server = settings.server
    if server.mode == "chat" and spec.prompt_format == "text":
        raise ConfigError(
            f"models.{spec.name}: prompt_format is text, which generation.server.mode chat cannot send: set "
            "generation.server.mode to completions"
        )
    if server.mode == "completions" and spec.prompt_format == "chat" and server.tokenizer is None:
        raise ConfigError(
            f"models.{spec.name}: prompt_format is chat, and generation.server.mode completions needs a tokenizer to "
            "render it: name it in generation.server.tokenizer, or set mode to chat"
        )
    if spec.revision is not None:
        raise ConfigError(
            f"models.{spec.name}.revision has no effect while generation.engine is server, which was started with "
            "one: leave it out"
        )


def _names(settings: GenerationSettings, address: str) -> ServerNames:
    variable = settings.server.api_key_env
    return ServerNames(
        server=address,
        section="generation.server",
        key=(
            f"set the environment variable {variable} to one that may use this model"
            if variable
            else "name the environment variable that holds one in generation.server.api_key_env"
        ),
        later="is it running there? Outputs written before are kept, and the same command goes on from them",
        request="the model's path, max_new_tokens, temperature, top_p and generation.server",
    )
