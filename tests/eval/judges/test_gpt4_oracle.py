"""The judge through the real ``openai`` client, against a scripted HTTP server on the loopback address."""

from __future__ import annotations

import email.utils
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.judges.chat.server import Usage
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle, content_id
from dynamic_dpo.eval.judges.verdict import Verdict
from scripted_server import Answer, ScriptedServer, completion, error

PLANTED_KEY = "sk-planted-key-that-must-appear-nowhere"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setattr("dynamic_dpo.eval.servers.retry.time.sleep", seconds.append)
    return seconds


def make_oracle(script: ScriptedServer, **options: Any) -> GPT4Oracle:
    settings = {"randomize_order": False, "initial_backoff": 0.5, "max_backoff": 4.0, "max_retries": 3}
    return GPT4Oracle("a-judge", base_url=script.base_url, **{**settings, **options})


def test_the_judge_is_asked_as_configured_and_its_verdict_comes_back(script: ScriptedServer) -> None:
    script.add(completion("B is warmer.\nVerdict: B"))
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
    assert (request["path"], request["key"]) == ("/v1/chat/completions", f"Bearer {PLANTED_KEY}")
    assert request["body"] == {
        "model": "a-judge",
        "temperature": 0.25,
        "max_tokens": 99,
        "messages": [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": "Q p {x} A one B two"},
        ],
    }


def test_a_swapped_question_gives_the_verdict_in_the_callers_terms(script: ScriptedServer) -> None:
    oracle = make_oracle(script, randomize_order=True, prompt_template="{prompt}|{output_a}|{output_b}")
    items = [f"item {number}" for number in range(20)]
    for _ in items:
        script.add(completion("Verdict: A"))  # a judge that always picks what it sees first
    judgements = [oracle.judge("p", "one", "two", item) for item in items]
    seen = [request["body"]["messages"][1]["content"] for request in script.requests]
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


def test_without_an_id_the_order_follows_the_content(script: ScriptedServer) -> None:
    script.add(completion("Verdict: tie"))
    judgement = make_oracle(script, randomize_order=True).judge("p", "one", "two")
    assert judgement.item_id == content_id("p", "one", "two")
    assert judgement.verdict is Verdict.TIE


@pytest.mark.parametrize("reply", [None, "", "I cannot choose.", "A is nearly a tie with B"])
def test_a_reply_without_a_verdict_is_invalid_and_not_a_tie(
    script: ScriptedServer, reply: str | None
) -> None:
    script.add(completion(reply))
    judgement = make_oracle(script).judge("p", "one", "two")
    assert judgement.verdict is Verdict.INVALID
    assert judgement.reply == (reply or "")


def test_retry_after_is_waited_for_in_full(script: ScriptedServer, waits: list[float]) -> None:
    script.add(error(429, "slow down", headers={"Retry-After": "7"}), completion("Verdict: A"))
    assert make_oracle(script, max_backoff=4.0).judge("p", "one", "two").verdict is Verdict.A
    assert waits == [7.0]
    assert len(script.requests) == 2


def test_a_real_wait_takes_the_time_asked_for(script: ScriptedServer) -> None:
    script.add(error(503, "busy", headers={"Retry-After": "0.3"}), completion("Verdict: A"))
    start = time.monotonic()
    make_oracle(script, initial_backoff=0.0).judge("p", "one", "two")
    assert time.monotonic() - start >= 0.3


def test_passing_faults_are_repeated_with_growing_waits(script: ScriptedServer, waits: list[float]) -> None:
    script.add(error(500, "oh"), error(429, "slow down"), Answer(cut_after=0), completion("Verdict: B"))
    assert make_oracle(script).judge("p", "one", "two").verdict is Verdict.B
    assert waits == [0.5, 1.0, 2.0]


def test_a_time_out_is_repeated(
    script: ScriptedServer, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    import openai

    script.add(completion("late", delay=0.5), completion("Verdict: A"))
    client = openai.OpenAI(base_url=script.base_url, timeout=0.2, max_retries=0)
    assert make_oracle(script, client=client).judge("p", "one", "two").verdict is Verdict.A
    assert waits == [0.5]
    assert "the judge's server gave a time-out; asking again in 0.5 s" in caplog.text
    client.close()


def test_retries_end(script: ScriptedServer, waits: list[float]) -> None:
    for _ in range(4):
        script.add(error(502, "bad gateway"))
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
        (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, "quota is used up"),
    ],
)
def test_what_cannot_succeed_fails_at_once(
    script: ScriptedServer,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: Any,
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    script.add(Answer(status, body))
    with pytest.raises(JudgeError, match=message) as raised:
        make_oracle(script).judge("p", "one", "two")
    assert waits == []
    assert len(script.requests) == 1
    assert PLANTED_KEY not in str(raised.value)
    assert PLANTED_KEY not in caplog.text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>It works!</html>", "text/html"),
        (b'{"choices": []}', "application/json"),
        (b'{"choices": null}', "application/json"),
        (b"[]", "application/json"),
        (b'{"choices": [{"message": null}]}', "application/json"),
        (b'{"choices": {"message": 3}}', "application/json"),
        (b'{"choices": ["Verdict: A"]}', "application/json"),
        (b"[" * 200_000, "application/json"),
        (b'{"created": ' + b"9" * 5000 + b"}", "application/json"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_reply_is_asked_for_again_and_no_verdict(
    script: ScriptedServer, waits: list[float], body: bytes, content_type: str
) -> None:
    malformed = Answer(200, body, {"Content-Type": content_type})
    script.add(malformed, completion("Verdict: B"))
    assert make_oracle(script).judge("p", "one", "two").verdict is Verdict.B
    assert waits == [0.5]
    script.add(*[malformed] * 4)
    with pytest.raises(JudgeError, match=r"base_url.*at each of 4 attempts"):
        make_oracle(script).judge("p", "one", "two")


def test_counts_that_are_no_numbers_count_as_none(script: ScriptedServer) -> None:
    answer = completion("Verdict: A")
    script.add(
        replace(answer, body=answer.body | {"usage": {"prompt_tokens": "many", "completion_tokens": -4}})
    )
    assert make_oracle(script).judge("p", "one", "two").usage is None


def test_a_server_that_asks_to_wait_for_days_is_not_waited_for(
    script: ScriptedServer, waits: list[float]
) -> None:
    script.add(error(429, "come back on Monday", headers={"Retry-After": "259200"}))
    with pytest.raises(
        JudgeError, match=r"asks to wait 259,200 s, and no further one could begin within 780 s"
    ):
        make_oracle(script).judge("p", "one", "two")
    assert waits == []
    with pytest.raises(ConfigError, match=r"timeout must lie between 0 and deadline .10., got 20"):
        make_oracle(script, timeout=20, deadline=10)


@pytest.mark.parametrize(
    "broken",
    [
        Answer(200, b'{"choices": ['),
        Answer(200, b"\xff\xfe{}"),
        completion("Verdict: A", cut_after=40),  # the connection breaks in the middle of the reply
    ],
)
def test_broken_json_is_asked_for_again(script: ScriptedServer, waits: list[float], broken: Answer) -> None:
    script.add(broken, completion("Verdict: B"))
    assert make_oracle(script).judge("p", "one", "two").verdict is Verdict.B
    assert waits == [0.5]


def test_json_that_stays_broken_points_to_the_address(script: ScriptedServer, waits: list[float]) -> None:
    script.add(*[Answer(200, b"{")] * 4)
    with pytest.raises(JudgeError, match=r"no JSON .is base_url the address.* at each of 4 attempts"):
        make_oracle(script).judge("p", "one", "two")
    assert len(script.requests) == 4


def test_retry_after_as_a_date_is_waited_for_exactly(
    script: ScriptedServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic_dpo.eval.servers.retry.time.time", lambda: 1_000_000_000.0)
    date = email.utils.formatdate(1_000_000_090, usegmt=True)
    script.add(error(429, "slow down", headers={"Retry-After": date}), completion("Verdict: A"))
    make_oracle(script, max_backoff=4.0).judge("p", "one", "two")
    assert waits == [90.0]


def test_a_server_that_counts_no_tokens_gives_no_usage(script: ScriptedServer) -> None:
    script.add(completion("Verdict: A", usage=None))
    assert make_oracle(script).judge("p", "one", "two").usage is None


def test_without_a_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="set the environment variable OPENAI_API_KEY"):
        GPT4Oracle(base_url="http://127.0.0.1:9/v1").judge("p", "one", "two")


@pytest.mark.parametrize("key", ["", "sk-with-a-line-break\n", "sk-with-é-in-it", "sk-with-a-\x00"])
def test_a_key_that_no_request_can_carry_is_refused_without_showing_it(
    script: ScriptedServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if "\x00" in key:
        monkeypatch.setattr("dynamic_dpo.eval.servers.client.os.environ", {"OPENAI_API_KEY": key})
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(JudgeError, match="environment variable OPENAI_API_KEY") as raised:
        make_oracle(script).judge("p", "one", "two")
    assert not key or key.strip() not in str(raised.value)
    assert script.requests == []


def test_a_key_that_the_server_repeats_reaches_nobody(
    script: ScriptedServer, caplog: pytest.LogCaptureFixture, waits: list[float]
) -> None:
    caplog.set_level(logging.DEBUG)
    oracle = make_oracle(script)
    script.add(error(500, f"your {PLANTED_KEY}"), completion(f"I was sent {PLANTED_KEY}.\nVerdict: A"))
    judgement = oracle.judge("p", "one", "two")
    assert judgement.reply == "I was sent [key hidden].\nVerdict: A"
    script.add(error(400, f"Authorization: Bearer {PLANTED_KEY} is odd"))
    with pytest.raises(JudgeError, match="is odd") as raised:
        oracle.judge("p", "one", "two")
    assert PLANTED_KEY not in f"{raised.value!r}{caplog.text}{oracle!r}{vars(oracle)}"


def test_a_password_in_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")

    class Client:
        class chat:
            class completions:
                create = staticmethod(lambda **_: "It works!")

    address = "https://me:secret@judge.example/v1?token=secret"
    oracle = GPT4Oracle(base_url=address, client=Client(), max_retries=0)
    with pytest.raises(JudgeError, match=r"check base_url, https://judge\.example/v1, and") as raised:
        oracle.judge("p", "one", "two")
    assert "secret" not in str(raised.value)


def test_half_a_surrogate_pair_can_be_asked_about(script: ScriptedServer) -> None:
    script.add(completion("Verdict: A"))
    make_oracle(script).judge("p", "one \ud83d", "two")
    assert "one ?" in script.requests[0]["body"]["messages"][1]["content"]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
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


def test_no_retries_means_one_attempt(script: ScriptedServer, waits: list[float]) -> None:
    script.add(error(500, "oh"))
    with pytest.raises(JudgeError, match="each of 1 attempts"):
        make_oracle(script, max_retries=0).judge("p", "one", "two")
    assert waits == []


def test_openai_is_imported_when_the_first_question_is_asked() -> None:
    code = "import sys, dynamic_dpo.eval; dynamic_dpo.eval.GPT4Oracle(); sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
