"""The judge through the real ``openai`` client, against a scripted HTTP server on the loopback address."""

from __future__ import annotations

import email.utils
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.gpt_oracle import GPT4Oracle, Usage, content_id
from dynamic_dpo.eval.retry import RetryPolicy, retry_after
from dynamic_dpo.eval.verdict import Verdict

PLANTED_KEY = "sk-planted-key-that-must-appear-nowhere"


class Script:
    """What the server answers, request by request, and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.base_url = ""

    def reply(self, text: str | None) -> Script:
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "a-judge",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
        }
        return self.answer(200, body)

    def answer(self, status: int, body: Any, **headers: str) -> Script:
        self.answers.append({"status": status, "body": body, "headers": headers})
        return self


class Handler(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.script.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
        answer = self.script.answers.pop(0)
        if answer["status"] == 0:  # cut the connection
            self.close_connection = True
            return
        if answer["status"] < 0:  # hang longer than the client waits
            threading.Event().wait(0.5)
            self.close_connection = True
            return
        raw = answer["body"] if isinstance(answer["body"], bytes) else json.dumps(answer["body"]).encode()
        self.send_response(answer["status"])
        self.send_header("Content-Type", answer["headers"].get("content_type", "application/json"))
        if "retry_after" in answer["headers"]:
            self.send_header("Retry-After", answer["headers"]["retry_after"])
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    script = Script()
    handler = type("ScriptedHandler", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    script.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setattr("dynamic_dpo.eval.retry.time.sleep", seconds.append)
    return seconds


def make_oracle(script: Script, **options: Any) -> GPT4Oracle:
    settings = {"randomize_order": False, "initial_backoff": 0.5, "max_backoff": 4.0, "max_retries": 3}
    return GPT4Oracle("a-judge", base_url=script.base_url, **{**settings, **options})


def rate_limit(**extra: Any) -> dict[str, Any]:
    return {"error": {"message": "slow down", "type": "rate_limit", **extra}}


def test_the_judge_is_asked_as_configured_and_its_verdict_comes_back(script: Script) -> None:
    script.reply("B is warmer.\nVerdict: B")
    oracle = make_oracle(
        script,
        temperature=0.25,
        max_tokens=99,
        system_prompt="Be fair.",
        prompt_template="Q {prompt} A {output_a} B {output_b}",
    )
    judgement = oracle.judge("p {x}", "one", "two", item_id="item 1")
    assert judgement.verdict is Verdict.B
    assert judgement.reply == "B is warmer.\nVerdict: B"
    assert judgement.usage == Usage(prompt_tokens=100, completion_tokens=7)
    assert judgement.item_id == "item 1"
    assert not judgement.swapped
    [request] = script.requests
    assert request == {
        "path": "/v1/chat/completions",
        "key": f"Bearer {PLANTED_KEY}",
        "model": "a-judge",
        "temperature": 0.25,
        "max_tokens": 99,
        "messages": [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": "Q p {x} A one B two"},
        ],
    }


def test_a_swapped_question_gives_the_verdict_in_the_callers_terms(script: Script) -> None:
    oracle = make_oracle(script, randomize_order=True, prompt_template="{prompt}|{output_a}|{output_b}")
    items = [f"item {number}" for number in range(20)]
    for _ in items:
        script.reply("Verdict: A")  # a judge that always picks what it sees first
    judgements = [oracle.judge("p", "one", "two", item) for item in items]
    seen = [request["messages"][1]["content"] for request in script.requests]
    for judgement, question in zip(judgements, seen, strict=True):
        expected = ("p|two|one", Verdict.B) if judgement.swapped else ("p|one|two", Verdict.A)
        assert (question, judgement.verdict) == expected
    assert len({judgement.swapped for judgement in judgements}) == 2


def test_the_order_follows_seed_and_item_and_is_even() -> None:
    items = [str(number) for number in range(2_000)]
    orders = {seed: [GPT4Oracle(seed=seed).shows_b_first(item) for item in items] for seed in (1, 2)}
    assert orders[1] == [GPT4Oracle(seed=1).shows_b_first(item) for item in items]
    assert orders[1] != orders[2]
    # Four standard errors of a share of one half: 4 * sqrt(.25 / 2,000) = .045.
    assert all(abs(sum(order) / 2_000 - 0.5) < 0.045 for order in orders.values())


def test_without_an_id_the_order_follows_the_content(script: Script) -> None:
    script.reply("Verdict: tie")
    judgement = make_oracle(script, randomize_order=True).judge("p", "one", "two")
    assert judgement.item_id == content_id("p", "one", "two")
    assert judgement.verdict is Verdict.TIE


@pytest.mark.parametrize("reply", [None, "", "I cannot choose.", "A is nearly a tie with B"])
def test_a_reply_without_a_verdict_is_invalid_and_not_a_tie(script: Script, reply: str | None) -> None:
    script.reply(reply)
    judgement = make_oracle(script).judge("p", "one", "two")
    assert judgement.verdict is Verdict.INVALID
    assert judgement.reply == (reply or "")


def test_retry_after_is_waited_for_in_full(script: Script, waits: list[float]) -> None:
    script.answer(429, rate_limit(), retry_after="7").reply("Verdict: A")
    assert make_oracle(script, max_backoff=4.0).judge("p", "one", "two").verdict is Verdict.A
    assert waits == [7.0]
    assert len(script.requests) == 2


def test_a_real_wait_takes_the_time_asked_for(script: Script) -> None:
    script.answer(503, {}, retry_after="0.3").reply("Verdict: A")
    start = time.monotonic()
    make_oracle(script, initial_backoff=0.0).judge("p", "one", "two")
    assert time.monotonic() - start >= 0.3


def test_passing_faults_are_repeated_with_growing_waits(script: Script, waits: list[float]) -> None:
    script.answer(500, {}).answer(429, rate_limit()).answer(0, None).reply("Verdict: B")
    assert make_oracle(script).judge("p", "one", "two").verdict is Verdict.B
    assert waits == [0.5, 1.0, 2.0]


def test_a_time_out_is_repeated(script: Script, waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    import openai

    script.answer(-1, None).reply("Verdict: A")
    client = openai.OpenAI(base_url=script.base_url, timeout=0.2, max_retries=0)
    assert make_oracle(script, client=client).judge("p", "one", "two").verdict is Verdict.A
    assert waits == [0.5]
    assert "the judge's server gave a time-out; asking again in 0.5 s" in caplog.text
    client.close()


def test_retries_end(script: Script, waits: list[float]) -> None:
    for _ in range(4):
        script.answer(502, {})
    with pytest.raises(JudgeError, match="status 502 at each of 4 attempts"):
        make_oracle(script).judge("p", "one", "two")
    assert waits == [0.5, 1.0, 2.0]
    assert len(script.requests) == 4


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {PLANTED_KEY}"}}, "OPENAI_API_KEY"),
        (403, {"error": {"message": f"{PLANTED_KEY} may not"}}, "refused the key"),
        (400, {"error": {"message": "max_tokens is too large"}}, "max_tokens is too large"),
        (404, {"error": {"message": "no model a-judge"}}, "no model a-judge.*check gpt4_oracle.model"),
        (429, rate_limit(code="insufficient_quota"), "quota is used up"),
    ],
)
def test_what_cannot_succeed_fails_at_once(
    script: Script,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: Any,
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    script.answer(status, body)
    with pytest.raises(JudgeError, match=message) as raised:
        make_oracle(script).judge("p", "one", "two")
    assert waits == []
    assert len(script.requests) == 1
    assert PLANTED_KEY not in str(raised.value)
    assert PLANTED_KEY not in caplog.text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"choices": [', "application/json"),
        (b"<html>It works!</html>", "text/html"),
        (b'{"choices": []}', "application/json"),
        (b'{"choices": null}', "application/json"),
        (b"[]", "application/json"),
    ],
)
def test_a_malformed_reply_is_an_error_and_no_verdict(
    script: Script, waits: list[float], body: bytes, content_type: str
) -> None:
    script.answer(200, body, content_type=content_type)
    with pytest.raises(JudgeError, match="answered without an error"):
        make_oracle(script).judge("p", "one", "two")
    assert waits == []


def test_a_server_that_counts_no_tokens_gives_no_usage(script: Script) -> None:
    script.reply("Verdict: A")
    del script.answers[0]["body"]["usage"]
    assert make_oracle(script).judge("p", "one", "two").usage is None


def test_without_a_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="set the environment variable OPENAI_API_KEY"):
        GPT4Oracle(base_url="http://127.0.0.1:9/v1").judge("p", "one", "two")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"pip install 'dynamic-dpo\[eval\]'"):
        GPT4Oracle().judge("p", "one", "two")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "gpt4_oracle.temperature must be at least 0"),
        ({"max_tokens": 0}, "gpt4_oracle.max_tokens must be at least 1"),
        ({"max_retries": -1}, "gpt4_oracle.max_retries must be at least 0"),
        (
            {"initial_backoff": 9.0, "max_backoff": 5.0},
            r"initial_backoff must lie between 0 and max_backoff \(5",
        ),
        ({"prompt_template": "{prompt} {output_a}"}, r"lacks \{output_b\}"),
    ],
)
def test_a_setting_out_of_range_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPT4Oracle(**setting)


def test_the_shipped_question_shows_everything_and_asks_for_each_verdict() -> None:
    question = GPT4Oracle().question("<the request>", "<the first>", "<the second>")
    positions = [question.index(part) for part in ("<the request>", "<the first>", "<the second>")]
    assert positions == sorted(positions)
    for verdict in ("A", "B", "tie"):
        assert question.index(f"\nVerdict: {verdict}\n") > positions[-1]


def test_texts_that_look_like_places_are_left_alone() -> None:
    oracle = GPT4Oracle(prompt_template='{"p": {prompt}, "a": {output_a}, "b": {output_b}}')
    assert oracle.question("{output_a}", "{prompt}", "{}") == '{"p": {output_a}, "a": {prompt}, "b": {}}'


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after({"retry-after": in_a_minute}) == pytest.approx(60, abs=2)
    long_ago = email.utils.formatdate(0, usegmt=True)
    assert retry_after({"retry-after": long_ago}) == 0.0


@pytest.mark.parametrize("value", ["nan", "inf", "-5"])
def test_a_senseless_retry_after_does_not_stop_the_run(value: str) -> None:
    assert retry_after({"retry-after": value}) in (None, 0.0)


def test_no_retries_means_one_attempt(script: Script, waits: list[float]) -> None:
    script.answer(500, {})
    with pytest.raises(JudgeError, match="each of 1 attempts"):
        make_oracle(script, max_retries=0).judge("p", "one", "two")
    assert waits == []


def test_backoff_doubles_up_to_its_limit() -> None:
    assert [RetryPolicy(9, 1.0, 5.0).backoff(attempt) for attempt in (0, 1, 2, 3, 60)] == [1, 2, 4, 5, 5]


def test_openai_is_imported_when_the_first_question_is_asked() -> None:
    code = "import sys, dynamic_dpo.eval; dynamic_dpo.eval.GPT4Oracle(); sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
