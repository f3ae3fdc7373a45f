"""A server on the loopback address that speaks as much of OpenAI's chat protocol as tests need.

It answers from a list, in order, and from a function when the list is empty; it records every request, and it can
fail in the ways real servers do, slowness byte by byte included.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Request = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    Attributes:
        status: HTTP status.
        body: Sent as JSON, or as it is if bytes.
        headers: More headers.
        delay: Seconds before it answers.
        meets: Where it waits for as many others as the barrier counts.
        cut_after: Bytes of the body after which the connection is cut; ``None``: it is not.
        reset: Whether the connection is reset instead of answered.
        drip: Seconds between two bytes of the body.
        drip_headers: Seconds between two bytes of everything before it.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    meets: threading.Barrier | None = None
    cut_after: int | None = None
    reset: bool = False
    drip: float = 0.0
    drip_headers: float = 0.0


def completion(
    text: str | None,
    *,
    finish_reason: str = "stop",
    usage: tuple[int, int] | None = (100, 7),
    logprobs: Any = None,
    **how: Any,
) -> Answer:
    """Return an answer with a reply of the judge."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "a-judge",
        "choices": [choice | ({"logprobs": logprobs} if logprobs is not None else {})],
    }
    if usage is not None:
        body["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": usage[0] + usage[1],
        }
    return Answer(200, body, **how)


def text_completion(text: Any, *, finish_reason: Any = "stop", tokens: int = 3, **how: Any) -> Answer:
    """Return an answer of the completions that are no chats; ``choice`` adds to its choice."""
    choice = {"index": 0, "finish_reason": finish_reason, "text": text, **how.pop("choice", {})}
    return Answer(200, {"choices": [choice], "usage": {"completion_tokens": tokens}}, **how)


def model_list(*names: str, **fields: Any) -> Answer:
    """Return a list of models, each with these fields."""
    return Answer(200, {"object": "list", "data": [{"id": name, "created": 1, **fields} for name in names]})


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """Return an answer that refuses, in OpenAI's form."""
    return Answer(status, {"error": {"message": message, "type": "error", **more}}, headers or {})


class ScriptedServer:
    """The server, as a context manager.

    Attributes:
        base_url: Its address.
        requests: What it was asked.
        looks: The GET requests, which ``models`` answers where it is set.
    """

    def __init__(self, respond: Callable[[Request], Answer] | None = None) -> None:
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        self.looks: list[Request] = []
        self.models: Answer | None = None
        self.respond = respond
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._handle(self)

            def do_GET(self) -> None:
                server._handle(self)

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of a client that was killed and has left its connection."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def add(self, *answers: Answer) -> Self:
        """Append to the list of answers."""
        self.answers += answers
        return self

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"] or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        request = {
            "path": handler.path,
            "key": handler.headers["Authorization"],
            "time": time.monotonic(),
            "body": body,
        }
        with self._lock:
            if handler.command == "GET":
                self.looks.append(request)
            else:
                self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if handler.command == "GET" and self.models is not None:
                answer = self.models
            elif self.answers:
                answer = self.answers.pop(0)
            elif self.respond is not None:
                answer = self.respond(request)
            else:
                answer = error(400, "the script has no answer left")
        self._stopping.wait(answer.delay)
        if answer.meets is not None:
            answer.meets.wait(timeout=10)
        with self._lock:
            self._at_once -= 1
        try:
            self._send(handler, answer)
        except OSError:
            handler.close_connection = True  # The client has gone: it timed out or was killed.

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.reset:
            # Closed at once and without a farewell.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        if answer.cut_after is not None:
            handler.close_connection = True
            if answer.cut_after == 0:
                return
        if answer.drip_headers:
            self._drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000, answer.drip_headers)
            return
        handler.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        if answer.drip:
            self._drip(handler, raw, answer.drip)
        else:
            handler.wfile.write(raw[: answer.cut_after])

    def _drip(self, handler: BaseHTTPRequestHandler, raw: bytes, seconds: float) -> None:
        for byte in raw:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if self._stopping.wait(seconds):
                break
        handler.close_connection = True
