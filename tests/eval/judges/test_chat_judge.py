"""The chat model as a judge: templates, what servers refuse, log-probabilities, and a whole stage that is killed."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judges.chat.capabilities import Capabilities
from dynamic_dpo.eval.judges.chat.server import Token
from dynamic_dpo.eval.judges.chat_judge import OracleJudge
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.template import (
    judge_template,
)
from dynamic_dpo.eval.judges.token_probs import verdict_probabilities
from dynamic_dpo.eval.judges.verdict import Verdict, read_reply
from dynamic_dpo.eval.judging.ledger import JudgeLedger, read_ledger
from dynamic_dpo.eval.judging.questions import Question, make_questions
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from places import TESTS
from scripted_server import Answer, Request, ScriptedServer, completion, error

PLANTED_KEY = "sk-planted-key-that-must-appear-nowhere"
PROMPT = PromptRecord.of([{"role": "user", "content": "How do I boil an egg?"}])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("dynamic_dpo.eval.servers.retry.time.sleep", seconds.append)
    return seconds


def make_judge(server: ScriptedServer, **options: Any) -> OracleJudge:
    oracle = GPT4Oracle(
        "a-judge", base_url=server.base_url, max_retries=3, initial_backoff=0.5, max_backoff=2.0
    )
    return OracleJudge(oracle, **{"template": judge_template("hh-v1"), **options})


def parameters(request: Request) -> set[str]:
    return set(request["body"]) - {"model", "messages"}


# --- asking


def test_the_judge_asks_by_its_template_and_keeps_the_reason(server: ScriptedServer) -> None:
    server.add(completion("A is safer.\n\n**Verdict: A**", usage=(120, 9)))
    judge = make_judge(server)
    assert isinstance(judge, Judge)
    reply = judge.ask(PROMPT, "Gently.", "With care.")
    assert reply == (Verdict.A, "A is safer.", None, 120, 9, False, 0.0, None)
    [request] = server.requests
    system, question = request["body"]["messages"]
    assert system == {"role": "system", "content": judge_template("hh-v1").system}
    assert "<reply_a>\nGently.\n</reply_a>" in question["content"]
    assert "How do I boil an egg?" in question["content"]
    assert parameters(request) == {"temperature", "max_tokens"}


def test_a_reply_cut_at_the_limit_is_invalid(server: ScriptedServer) -> None:
    server.add(completion("Verdict: A", finish_reason="length"))
    assert make_judge(server).ask(PROMPT, "x", "y").verdict is Verdict.INVALID


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"content": [{"type": "text", "text": "r\n"}, {"type": "text", "text": "Verdict: A"}]},
            (Verdict.A, "r"),
        ),
        ({"content": None, "refusal": "I will not."}, (Verdict.INVALID, "I will not.")),
        ({"content": None}, (Verdict.INVALID, "")),
        ({"content": "", "reasoning_content": "Verdict: A"}, (Verdict.INVALID, "")),
    ],
)
def test_unusual_messages_are_read(server: ScriptedServer, message: dict[str, Any], expected: Any) -> None:
    choice = {"index": 0, "finish_reason": None, "message": {"role": "assistant", **message}}
    server.add(Answer(200, {"choices": [choice], "usage": {"total_tokens": 3}}))
    reply = make_judge(server).ask(PROMPT, "x", "y")
    assert (reply.verdict, reply.reason, reply.prompt_tokens) == (*expected, 0)


@pytest.mark.usefixtures("waits")
def test_a_failure_that_a_relay_reports_as_a_success_is_quoted(server: ScriptedServer) -> None:
    failure = Answer(200, {"error": {"code": 502, "message": f"upstream is down {PLANTED_KEY}"}})
    server.add(failure, failure, failure, failure)
    with pytest.raises(JudgeError, match=r"without a chat completion .*upstream is down") as raised:
        make_judge(server).ask(PROMPT, "x", "y")
    assert PLANTED_KEY not in str(raised.value)


def test_a_schema_is_asked_for_and_its_reply_read(server: ScriptedServer) -> None:
    server.add(completion('{"reason": "B is kinder.", "verdict": "B"}'))
    reply = make_judge(server, json_schema=True).ask(PROMPT, "x", "y")
    assert (reply.verdict, reply.reason) == (Verdict.B, "B is kinder.")
    body = server.requests[0]["body"]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == [
        "A",
        "B",
        "tie",
    ]
    assert "JSON object" in body["messages"][1]["content"]


def test_the_fingerprint_follows_what_verdicts_depend_on() -> None:
    def fingerprint(model: str = "m", temperature: float = 0.0, max_tokens: int = 9, **rest: Any) -> str:
        oracle = GPT4Oracle(
            model, temperature=temperature, max_tokens=max_tokens, base_url=rest.pop("url", None)
        )
        return json.dumps(OracleJudge(oracle, **rest).fingerprint(), sort_keys=True)

    same = [
        fingerprint(),
        fingerprint(url="http://elsewhere/v1"),
        fingerprint(max_attempts=5),
        fingerprint(name="n"),
    ]
    other = [
        fingerprint(model="n"),
        fingerprint(temperature=1.0),
        fingerprint(max_tokens=10),
        fingerprint(template=judge_template("hh-v1")),
        fingerprint(template=judge_template("tldr-v1")),
        fingerprint(json_schema=True),
        fingerprint(logprobs=True),
    ]
    assert len(set(same)) == 1
    assert len({same[0], *other}) == 8


def test_a_judge_that_may_not_ask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.max_attempts must be at least 1, got 0"):
        OracleJudge(GPT4Oracle(), max_attempts=0)


# --- what servers refuse

OPENAI_LIMIT = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
)
OPENAI_TEMPERATURE = (
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is."
)
LLAMA_SCHEMA = (
    "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': "
    "\"Input should be 'text' or 'json_object'\"}]"
)
LLAMA_LOGPROBS = "logprobs is not supported for models created with logits_all=False"


class Picky:
    """Answers as a server that refuses some parameters, each in its own words."""

    def __init__(self, refused: dict[str, tuple[int, str]]) -> None:
        self.refused = refused

    def __call__(self, request: Request) -> Answer:
        for name, (status, words) in self.refused.items():
            if name in request["body"]:
                return error(status, words)
        asks_json = "response_format" in request["body"]
        return completion('{"reason": "r", "verdict": "B"}' if asks_json else "r\nVerdict: B")


@pytest.mark.parametrize(
    ("refused", "left", "num_requests", "num_waits"),
    [
        ({}, {"temperature", "max_tokens", "response_format", "logprobs", "top_logprobs"}, 1, 0),
        (
            {"max_tokens": (400, OPENAI_LIMIT), "temperature": (400, OPENAI_TEMPERATURE)},
            {"max_completion_tokens", "response_format", "logprobs", "top_logprobs"},
            3,
            0,
        ),
        (
            {"response_format": (500, LLAMA_SCHEMA)},
            {"temperature", "max_tokens", "logprobs", "top_logprobs"},
            2,
            0,
        ),
        ({"logprobs": (500, LLAMA_LOGPROBS)}, {"temperature", "max_tokens", "response_format"}, 2, 0),
        (
            {"response_format": (500, LLAMA_SCHEMA), "logprobs": (500, LLAMA_LOGPROBS)},
            {"temperature", "max_tokens"},
            3,
            0,
        ),
        # Without a word about what is wrong: a second 500 in a row makes the schema, then all, a suspect.
        (
            {"response_format": (500, "Internal Server Error")},
            {"temperature", "max_tokens", "logprobs", "top_logprobs"},
            3,
            1,
        ),
        ({"logprobs": (500, "Internal Server Error")}, {"temperature", "max_tokens"}, 4, 1),
        (
            {"response_format": (400, "bad request")},
            {"temperature", "max_tokens", "logprobs", "top_logprobs"},
            2,
            0,
        ),
        (
            {"logprobs": (422, "extra fields not permitted: logprobs")},
            {"temperature", "max_tokens", "response_format"},
            2,
            0,
        ),
    ],
)
def test_what_a_server_refuses_is_found_out_once(
    server: ScriptedServer,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    refused: dict[str, tuple[int, str]],
    left: set[str],
    num_requests: int,
    num_waits: int,
) -> None:
    server.respond = Picky(refused)
    judge = make_judge(server, json_schema=True, logprobs=True)
    for _ in range(3):
        assert judge.ask(PROMPT, "x", "y").verdict is Verdict.B
    assert len(server.requests) == num_requests + 2
    assert [parameters(request) for request in server.requests[-3:]] == [left] * 3
    assert len(waits) == num_waits
    assert ("going on so" in caplog.text) == bool(refused)


def test_only_the_first_of_many_threads_finds_out(server: ScriptedServer, tmp_path: Path) -> None:
    server.respond = Picky({"response_format": (500, LLAMA_SCHEMA)})
    with JudgeLedger(tmp_path / "judgements.jsonl") as ledger:
        run_judging(make(10), make_judge(server, json_schema=True), ledger, concurrency=8, progress=False)
    assert sum("response_format" in request["body"] for request in server.requests) == 1
    assert len(server.requests) == 21


def test_a_server_that_fails_for_a_while_loses_no_capability(
    server: ScriptedServer, waits: list[float]
) -> None:
    # Three 500s in a row: one happens, the second makes the schema suspect, and without it the server fails too.
    server.add(*[error(500, "oh")] * 4)
    server.respond = Picky({})
    judge = make_judge(server, json_schema=True)
    assert judge.ask(PROMPT, "x", "y").verdict is Verdict.B
    asked = ["response_format" in request["body"] for request in server.requests]
    assert asked == [True, True, False, True, True]
    judge.ask(PROMPT, "x", "y")
    assert "response_format" in server.requests[-1]["body"]


def test_a_server_that_keeps_failing_is_given_up(server: ScriptedServer, waits: list[float]) -> None:
    server.respond = lambda _: error(500, "oh")
    with pytest.raises(JudgeError, match="status 500 at each of 4 attempts"):
        make_judge(server, json_schema=True).ask(PROMPT, "x", "y")
    assert len(server.requests) == 2 + 1 + 4


def test_a_500_after_the_first_answer_is_an_ordinary_fault(
    server: ScriptedServer, waits: list[float]
) -> None:
    server.respond = Picky({})
    judge = make_judge(server, json_schema=True)
    judge.ask(PROMPT, "x", "y")
    server.add(error(500, "oh"), error(500, "oh"))
    judge.ask(PROMPT, "x", "y")
    assert all("response_format" in request["body"] for request in server.requests)
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_blames_no_parameter(
    server: ScriptedServer, waits: list[float], status: int
) -> None:
    server.respond = lambda _: error(status, f"response_format logprobs {PLANTED_KEY}")
    with pytest.raises(JudgeError, match=f"status {status}") as raised:
        make_judge(server, json_schema=True, logprobs=True).ask(PROMPT, "x", "y")
    assert (len(server.requests), waits) == (1, [])
    assert PLANTED_KEY not in str(raised.value)


def test_a_question_that_is_wrong_in_itself_is_refused_with_the_first_reason(
    server: ScriptedServer, waits: list[float]
) -> None:
    server.respond = lambda r: error(
        400, "the prompt is too long" if "response_format" in r["body"] else "still"
    )
    with pytest.raises(JudgeError, match="the prompt is too long"):
        make_judge(server, json_schema=True).ask(PROMPT, "x", "y")
    assert (len(server.requests), waits) == (2, [])


def test_a_value_out_of_range_is_no_missing_capability(server: ScriptedServer) -> None:
    server.respond = lambda _: error(400, "temperature must be at most 1; max_tokens must be below 100")
    with pytest.raises(JudgeError, match="temperature must be at most 1"):
        make_judge(server).ask(PROMPT, "x", "y")
    assert len(server.requests) == 1


def test_what_was_never_asked_for_is_not_taken_for_accepted(server: ScriptedServer) -> None:
    server.respond = Picky({"response_format": (400, "response_format is unknown")})
    judge = make_judge(server)
    judge.ask(PROMPT, "x", "y")
    with_schema = OracleJudge(judge.oracle, json_schema=True)
    assert with_schema.ask(PROMPT, "x", "y").verdict is Verdict.B
    assert Capabilities().limit_name == "max_tokens"


# --- log-probabilities


def logprobs_of(*tokens: tuple[str, dict[str, float]]) -> dict[str, Any]:
    def token(text: str, alternatives: dict[str, float]) -> dict[str, Any]:
        others = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in alternatives.items()]
        return {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": others}

    return {"content": [token(*pair) for pair in tokens], "refusal": None}


def test_the_likeliest_verdict_counts_and_its_probability_is_kept(server: ScriptedServer) -> None:
    # " A" was sampled with .3, " B" has .6 and " tie" .1: 1 in all.
    alternatives = {" B": 0.6, " A": 0.3, " tie": 0.1}
    spelled = logprobs_of(("Close", {}), (".\nVerdict:", {}), (" A", alternatives))
    server.add(completion("Close.\nVerdict: A", logprobs=spelled))
    reply = make_judge(server, logprobs=True).ask(PROMPT, "x", "y")
    assert reply.verdict is Verdict.B
    assert (reply.prob_first, reply.prob_tie) == (pytest.approx(0.3), pytest.approx(0.1))
    assert server.requests[0]["body"]["top_logprobs"] == 5


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {"content": None},
        {"content": [{"token": "other text", "logprob": 0.0, "bytes": None, "top_logprobs": []}]},
        {
            "tokens": ["Verdict", ": A"],
            "token_logprobs": [0.0, 0.0],
            "text_offset": [0, 7],
        },  # of older servers
    ],
)
def test_without_usable_log_probabilities_the_written_verdict_counts(
    server: ScriptedServer, logprobs: Any
) -> None:
    server.add(completion("Verdict: A", logprobs=logprobs))
    reply = make_judge(server, logprobs=True).ask(PROMPT, "x", "y")
    assert (reply.verdict, reply.prob_first) == (Verdict.A, None)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("Verdict: A", ["Verdict", ": A"], (0.5, 0.25, 0.25)),
        ("Verdict: A", ["Verdict: A"], None),  # none of the alternatives below begins with "Verdict: "
        ("A", ["A"], (0.5, 0.25, 0.25)),
        ("Verdict: **A**", ["Verdict: **", "A", "**"], (0.5, 0.25, 0.25)),
        ('{"verdict": "A"}', ['{"verdict": "', "A", '"}'], (0.5, 0.25, 0.25)),
        ("Verdict: A < B", ["Verdict: ", "A", " < B"], None),
        ("Verdict: A", ["Verdict: ", "A", " or more"], (0.5, 0.25, 0.25)),
        ("Verdict: C", ["Verdict: ", "C"], None),
        ("", ["A"], None),
    ],
)
def test_probabilities_are_those_of_the_verdicts_own_token(
    text: str, tokens: list[str], expected: tuple[float, ...] | None
) -> None:
    shares = {"A": 0.4, " b": 0.1, "B": 0.1, "t": 0.2, "The": 0.2}
    alternatives = tuple((other, math.log(share)) for other, share in shares.items())
    found = verdict_probabilities(text, [Token(token, alternatives) for token in tokens], read_reply(text))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert tuple(found[v] for v in (Verdict.A, Verdict.B, Verdict.TIE)) == pytest.approx(expected)


# --- a whole stage through HTTP


def make(num_prompts: int) -> list[Question]:
    prompts = [PromptRecord.of([{"role": "user", "content": f"question {n}"}]) for n in range(num_prompts)]
    outputs = [OutputRecord(p.id, m, 0, f"{m} output", 2, True) for p in prompts for m in ("new", "old")]
    return make_questions(prompts, outputs, [("new", "old")]).questions


def by_content(request: Request) -> Answer:
    """Answer as a judge whose reply depends on the question alone; one in five is invalid."""
    rng = random.Random(request["body"]["messages"][1]["content"])
    text = rng.choice(["Verdict: A", "Verdict: B", "Verdict: tie", "r\nVerdict: A", "I cannot say."])
    return completion(text, delay=rng.uniform(0.0, 0.02))


def content(request: Request) -> str:
    text: str = request["body"]["messages"][1]["content"]
    return text


def test_faults_of_all_kinds_on_the_way_change_nothing(
    server: ScriptedServer, waits: list[float], tmp_path: Path
) -> None:
    server.respond = by_content
    with JudgeLedger(tmp_path / "calm.jsonl") as ledger:
        calm = run_judging(make(10), make_judge(server), ledger, concurrency=3, progress=False)
    faults = [
        error(429, "slow down", headers={"Retry-After": "3"}),
        error(503, "busy"),
        Answer(cut_after=0),
        Answer(200, b'{"choices": ['),
        completion("Verdict: A", cut_after=30),
    ]

    def every_other_request_fails(request: Request) -> Answer:
        return faults.pop() if faults and len(server.requests) % 2 else by_content(request)

    server.respond = every_other_request_fails
    with JudgeLedger(tmp_path / "stormy.jsonl") as ledger:
        stormy = run_judging(make(10), make_judge(server), ledger, concurrency=1, progress=False)
    assert stormy == calm
    assert faults == []
    assert sorted(waits) == [0.5, 0.5, 0.5, 0.5, 3.0]


def test_a_refused_key_ends_the_stage_and_is_written_nowhere(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.add(completion(f"{PLANTED_KEY}\nVerdict: A"), completion(f"No verdict, {PLANTED_KEY}"))
    server.respond = lambda r: error(401, f"Incorrect API key provided: {r['key']}")
    with (
        JudgeLedger(tmp_path / "judgements.jsonl") as ledger,
        pytest.raises(JudgeError, match="refused the key") as raised,
    ):
        run_judging(make(5), make_judge(server), ledger, concurrency=1, progress=False)
    assert len(server.requests) == 3
    files = [path.read_text() for path in tmp_path.iterdir()]
    assert any("[key hidden]" in text for text in files)
    assert not any(PLANTED_KEY in text for text in [*files, caplog.text, str(raised.value)])


CHILD = """
import sys
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.judges.template import judge_template
from dynamic_dpo.eval.judges.chat_judge import OracleJudge
sys.path[:0] = sys.argv[3:]
from test_chat_judge import make
judge = OracleJudge(GPT4Oracle("a-judge", base_url=sys.argv[1]), template=judge_template("hh-v1"))
with JudgeLedger(sys.argv[2]) as ledger:
    outcome = run_judging(make(20), judge, ledger, concurrency=CONCURRENCY, progress=False)
print(len(outcome.records))
"""


def judge_in_a_process(server: ScriptedServer, path: Path, concurrency: int) -> subprocess.Popen[str]:
    code = CHILD.replace("CONCURRENCY", str(concurrency))
    arguments = [
        sys.executable,
        "-c",
        code,
        server.base_url,
        str(path),
        str(TESTS),
        str(TESTS / "eval/judges"),
    ]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def kill_and_resume(server: ScriptedServer, folder: Path, *, kills: int, concurrency: int, seed: int) -> None:
    server.respond = by_content
    with JudgeLedger(folder / "whole.jsonl") as ledger:
        expected = run_judging(make(20), make_judge(server), ledger, concurrency=8, progress=False)
    num_needed = expected.num_asked
    server.requests.clear()
    path = folder / "judgements.jsonl"
    rng = random.Random(seed)
    for _ in range(kills):
        before = len(server.requests)
        process = judge_in_a_process(server, path, concurrency)
        # At any point of a reply's way once the process asks.
        deadline = time.monotonic() + 60
        while len(server.requests) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = judge_in_a_process(server, path, concurrency)
    assert process.communicate(timeout=60)[0] == "40\n"

    asked = Counter(content(request) for request in server.requests)
    assert len(asked) == num_needed
    again = sum(asked.values()) - num_needed
    # What was under way when the process died is asked again, and nothing else.
    assert again <= kills * concurrency
    with JudgeLedger(path) as ledger:
        outcome = run_judging(make(20), make_judge(server), ledger, progress=False)
    assert (outcome.records, outcome.spent, outcome.num_asked) == (expected.records, expected.spent, 0)
    first, second = (
        sorted(read_ledger(file), key=lambda r: r.key) for file in (path, folder / "whole.jsonl")
    )
    assert first == second


def test_a_killed_stage_pays_again_only_for_what_was_under_way(
    server: ScriptedServer, tmp_path: Path
) -> None:
    kill_and_resume(server, tmp_path, kills=2, concurrency=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_stage_killed_twenty_times_pays_again_only_for_what_was_under_way(
    server: ScriptedServer, tmp_path: Path, concurrency: int
) -> None:
    kill_and_resume(server, tmp_path, kills=20, concurrency=concurrency, seed=20)
