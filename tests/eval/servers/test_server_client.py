"""A connection every request of which ends, whatever the server does, and whose key goes to one host alone."""

from __future__ import annotations

import gc
import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from dynamic_dpo.errors import ServerError
from dynamic_dpo.eval.servers.client import ServerClient, environment_key
from dynamic_dpo.eval.servers.retry import PassingError, RetryPolicy
from scripted_server import Answer, Request, ScriptedServer, completion

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(script: ScriptedServer) -> Iterator[ServerClient]:
    client = ServerClient(base_url=script.base_url, key="sk-12345678", deadline=2.0, max_reply_bytes=10_000)
    yield client
    client.close()


@pytest.mark.parametrize(
    "slow",
    [{"delay": 30.0}, {"drip": 0.05}, {"drip_headers": 0.05}],
    ids=["silent", "drips the body", "drips the headers"],
)
def test_a_server_that_dribbles_meets_the_deadline(
    script: ScriptedServer, client: ServerClient, slow: dict[str, float]
) -> None:
    script.add(completion("x" * 9000, **slow), completion("quick"))
    begun = time.monotonic()
    with pytest.raises(PassingError, match=r"no whole reply within 2 s"):
        client.chat_completion(**ASK)
    assert 1.9 < time.monotonic() - begun < 20
    assert client.chat_completion(**ASK).choices[0].message.content == "quick"


def test_a_reply_is_read_up_to_its_largest_size(script: ScriptedServer) -> None:
    client = ServerClient(base_url=script.base_url, key=None, deadline=20.0, max_reply_bytes=10_000)
    script.add(Answer(200, b"x" * 50_000_000), Answer(500, b"x" * 50_000_000))
    tracemalloc.start()
    try:
        for _ in range(2):
            with pytest.raises(PassingError, match=r"a reply of more than 10,000 bytes"):
                client.chat_completion(**ASK)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
        client.close()


def test_a_compressed_reply_is_not_unfolded(script: ScriptedServer, client: ServerClient) -> None:
    bomb = gzip.compress(b" " * 20_000_000)
    script.add(Answer(200, bomb, {"Content-Encoding": "gzip"}))
    with pytest.raises(PassingError, match="a compressed reply, which was not asked for"):
        client.chat_completion(**ASK)


def test_no_redirect_is_followed_and_no_key_sent_on(script: ScriptedServer, client: ServerClient) -> None:
    with ScriptedServer(lambda request: completion("caught")) as other:
        for status in (301, 302, 307, 308):
            script.add(Answer(status, b"", {"Location": f"{other.base_url}/chat/completions"}))
            with pytest.raises(ServerError, match=f"sends elsewhere .status {status}.*base_url"):
                RetryPolicy(3, 0.0, 0.0).call(lambda: client.chat_completion(**ASK))
        assert other.requests == other.looks == []
    assert [request["key"] for request in script.requests] == ["Bearer sk-12345678"] * 4


def test_without_a_key_none_is_sent(script: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    client = ServerClient(base_url=script.base_url, key=None, deadline=5.0)
    script.add(Answer(200, {"ok": True}), Answer(200, {"data": []}))
    assert client.post("/completions", {"prompt": "Hi"}) == {"ok": True}
    assert client.get("/models") == {"data": []}
    assert [request["key"] for request in (*script.requests, *script.looks)] == [None, None]
    client.close()
    client.close()


def test_a_client_that_nobody_closes_ends_with_its_last_reference(script: ScriptedServer) -> None:
    before = threading.active_count()
    client = ServerClient(base_url=script.base_url, key=None, deadline=5.0)
    script.add(Answer(200, {}))
    client.post("/completions", {})
    thread = client._thread
    del client
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert threading.active_count() <= before + 1  # The script's own thread may still hold the connection.


def test_requests_of_many_threads_are_under_way_together(script: ScriptedServer) -> None:
    together = threading.Barrier(8)

    def respond(request: Request) -> Answer:
        return Answer(200, {"said": request["body"]["n"]}, meets=together)

    script.respond = respond
    client = ServerClient(base_url=script.base_url, key=None, deadline=20.0)
    found: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: client.post("/completions", {"n": n})}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: {"said": n} for n in range(8)}
    client.close()


def test_waiting_for_a_server_ends_when_the_work_is_stopped(
    script: ScriptedServer, client: ServerClient
) -> None:
    stopping = threading.Event()
    script.add(Answer(429, json.loads("{}"), {"Retry-After": "60"}))
    threading.Timer(0.2, stopping.set).start()
    begun = time.monotonic()
    with pytest.raises(ServerError, match="was being waited for when the work was stopped"):
        RetryPolicy(3, 0.0, 0.0).call(lambda: client.chat_completion(**ASK), stopping=stopping)
    assert time.monotonic() - begun < 10


def test_a_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_API_KEY", "abc")
    assert environment_key("POLICY_API_KEY", purpose="the policy") == "abc"
    monkeypatch.setenv("POLICY_API_KEY", "abc\n")
    with pytest.raises(ServerError, match="POLICY_API_KEY holds a blank") as raised:
        environment_key("POLICY_API_KEY", purpose="the policy")
    assert "abc" not in str(raised.value)
    monkeypatch.delenv("POLICY_API_KEY")
    with pytest.raises(
        ServerError, match="the policy has no key: set the environment variable POLICY_API_KEY"
    ):
        environment_key("POLICY_API_KEY", purpose="the policy")
