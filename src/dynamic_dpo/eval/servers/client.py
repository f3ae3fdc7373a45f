"""One connection to a server that speaks OpenAI's protocol, every request of which ends.

A request has a deadline for all of it, from the name's look-up to the last byte, and its reply a largest size.
Nothing is repeated here (``retry``), no redirect followed: it would carry prompts and key to another place.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

from dynamic_dpo.errors import ServerError
from dynamic_dpo.eval.servers.retry import PassingError
from dynamic_dpo.utils.secrets import HIDDEN

MAX_REPLY_BYTES = 16 * 2**20


class ServerClient:
    """Sends requests from several threads; one event loop in a thread of its own carries them.

    Args:
        base_url: Address of the server; ``None`` for the ``openai`` package's default.
        key: Sent with every request; ``None`` sends none.
        deadline: Seconds that one request may take.
        max_reply_bytes: Largest reply.

    Raises:
        ServerError: If the package ``openai`` is not installed.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        key: str | None,
        deadline: float,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ServerError(
                "asking a server needs the package openai: pip install 'dynamic-dpo[eval]'"
            ) from None
        self.deadline = deadline
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="server client", daemon=True)
        self._thread.start()
        # Its own retries also repeat 409 and know no limit of ours, so they are switched off.
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            # The package insists on one.
            api_key=key or "none",
            max_retries=0,
            timeout=deadline,
            http_client=_bounded_client(max_reply_bytes, sends_key=key is not None),
        )
        # One that nobody closes ends with its last reference.
        self._end = weakref.finalize(self, _end, self._loop, self._openai)

    def chat_completion(self, **body: Any) -> Any:
        """Return an ``openai`` chat completion, not validated.

        Raises:
            PassingError: If the request reaches its deadline, or the reply is too large.
            openai.OpenAIError: Whatever else goes wrong.
        """
        return self._wait_for(self._openai.chat.completions.create(**body))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that a POST is answered with, or text where the answer is none; raises the same."""
        return self._wait_for(self._openai.post(path, cast_to=object, body=body))

    def get(self, path: str) -> Any:
        """Return the JSON that a GET is answered with, or text where the answer is none; raises the same."""
        return self._wait_for(self._openai.get(path, cast_to=object))

    def close(self) -> None:
        """Give the connections back; no request may be under way."""
        self._end()
        self._thread.join()

    def _wait_for(self, request: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            try:
                async with asyncio.timeout(self.deadline):
                    return await request
            except TimeoutError:
                raise PassingError(f"no whole reply within {self.deadline:g} s") from None

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    async def end() -> None:
        await client.close()
        loop.stop()

    # Not waited for: the garbage collector may call this in any thread, the loop's own included.
    asyncio.run_coroutine_threadsafe(end(), loop)


def environment_key(variable: str, *, purpose: str) -> str:
    """Return the key that an environment variable holds.

    Args:
        variable: Its name.
        purpose: Who needs the key, for errors.

    Raises:
        ServerError: If it holds none, or one that no HTTP header can carry.
    """
    key = os.environ.get(variable, "")
    if not key:
        raise ServerError(
            f"{purpose} has no key: set the environment variable {variable} (any value will do for a local server "
            "that checks none)"
        )
    if not key.isascii() or not key.isprintable() or key != key.strip():
        # The HTTP library would quote such a key in its error.
        raise ServerError(
            f"the key in the environment variable {variable} holds a blank, a line break or a letter that no HTTP "
            "header can carry; set it again without"
        )
    return key


def without_key(text: str, key: str | None) -> str:
    """Return what a server wrote without the key that it was given; everything else is data and stays.

    >>> without_key("You sent sk-12345678.", "sk-12345678"), without_key("none of it", "none")
    ('You sent [key hidden].', 'none of it')
    """
    # A shorter one is a placeholder for a server that checks none.
    return text.replace(key, HIDDEN) if key and len(key) >= 8 else text


def _bounded_client(max_reply_bytes: int, *, sends_key: bool) -> Any:
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        """An HTTP client that reads every reply whole and stops where it grows too large."""

        async def send(self, request: Any, **options: Any) -> Any:
            if not sends_key:
                request.headers.pop("Authorization", None)
            # A compressed reply could unfold to any size, so none is asked for and none is read.
            request.headers["Accept-Encoding"] = "identity"
            response = await super().send(request, **options | {"stream": True})
            try:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise PassingError("a compressed reply, which was not asked for")
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > max_reply_bytes:
                        raise PassingError(f"a reply of more than {max_reply_bytes:,} bytes")
            finally:
                await response.aclose()
            return type(response)(
                response.status_code, headers=response.headers, content=bytes(body), request=request
            )

    return BoundedClient(follow_redirects=False)
