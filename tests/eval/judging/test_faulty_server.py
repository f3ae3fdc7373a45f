"""A whole judging against a server with every fault that servers have had, killed and begun again on the way."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest

from dynamic_dpo.eval.judging.ledger import JudgeLedger, read_ledger
from dynamic_dpo.eval.judging.questions import Question, make_questions
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from places import TESTS
from scripted_server import Answer, Request, ScriptedServer, completion, error

KEY = "sk-planted-key-for-one-host-alone"
CONCURRENCY = 8
NOT_A_VERDICT = "Meiner Ansicht nach ist die erste Antwort besser.\n\nUrteil: A"


def faults(elsewhere: str, *, slow: float) -> dict[str, Answer]:
    """Every kind of fault; those that only a deadline ends take ``slow`` seconds."""
    spaces = b" " * 50_000_000
    whole = completion("Verdict: A")
    return {
        "429 with Retry-After": error(429, "slow down", headers={"Retry-After": "0.2"}),
        "500": error(500, "oh"),
        "503": error(503, "busy"),
        "529": error(529, "overloaded"),
        "time-out": completion("Verdict: A", delay=slow),
        "drip": completion("Verdict: A", drip=slow / 10),
        "reset": Answer(reset=True),
        "broken off": completion("Verdict: A", cut_after=30),
        "truncated JSON": Answer(200, b'{"choices": [{"message": {"content": "Verdict: A"'),
        "wrong types": Answer(200, {**whole.body, "choices": [{"message": "Verdict: A"}]}),
        "no choices": Answer(200, {**whole.body, "choices": []}),
        "50 MB": Answer(200, spaces),
        "bomb, gzip": Answer(200, gzip.compress(spaces), {"Content-Encoding": "gzip"}),
        "bomb, deflate": Answer(200, zlib.compress(spaces), {"Content-Encoding": "deflate"}),
        "redirect": Answer(307, b"", {"Location": f"{elsewhere}/chat/completions"}),
        "another language": completion(NOT_A_VERDICT),
    }


def make(num_prompts: int) -> list[Question]:
    prompts = [PromptRecord.of([{"role": "user", "content": f"question {n}"}]) for n in range(num_prompts)]
    outputs = [OutputRecord(p.id, m, 0, f"{m} output", 2, True) for p in prompts for m in ("new", "old")]
    return make_questions(prompts, outputs, [("new", "old")]).questions


CHILD = f"""
import resource, sys
from dynamic_dpo.errors import JudgeError
from dynamic_dpo.eval.judges.chat_judge import OracleJudge
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.template import judge_template
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.stage import run_judging
sys.path[:0] = sys.argv[5:]
from test_faulty_server import make
import openai
oracle = GPT4Oracle(
    "a-judge", base_url=sys.argv[1], timeout=float(sys.argv[4]), max_retries=10, initial_backoff=0.05, max_backoff=0.2
)
judge = OracleJudge(oracle, template=judge_template("hh-v1"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with JudgeLedger(sys.argv[2]) as ledger:
    try:
        run_judging(make(int(sys.argv[3])), judge, ledger, concurrency={CONCURRENCY}, progress=False)
    except JudgeError as error:
        assert "sends elsewhere" in str(error), error
        sys.exit(7)
    finally:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def judge_all(folder: Path, *, num_prompts: int, kills: int, each: int, timeout: float, seed: int) -> None:
    """Judge everything, every fault ``each`` times, and check that nothing paid was lost or asked for again."""
    rng = random.Random(seed)
    asked: Counter[str] = Counter()
    met: Counter[str] = Counter()
    with ScriptedServer() as elsewhere, ScriptedServer() as server:
        elsewhere.respond = lambda request: completion("Verdict: B")
        kinds = faults(elsewhere.base_url, slow=4 * timeout)
        waiting = [kind for kind in kinds for _ in range(each)]
        rng.shuffle(waiting)

        def respond(request: Request) -> Answer:
            # A reminder after an unreadable reply belongs to the same question.
            question = request["body"]["messages"][-1]["content"].partition("</reply_b>")[0]
            # The first question finds out what the server takes, one thread after the other.
            if waiting and asked and rng.random() < 0.5:
                kind = waiting.pop()
                met[kind] += 1
                if kind == "another language":
                    asked[question] += 1
                return kinds[kind]
            asked[question] += 1
            return completion(random.Random(question).choice(["Verdict: A", "Verdict: B", "Verdict: tie"]))

        server.respond = respond
        arguments = [sys.executable, "-c", CHILD, server.base_url, str(folder / "judgements.jsonl")]
        arguments += [str(num_prompts), str(timeout), str(TESTS), str(TESTS / "eval/judging")]
        environment = os.environ | {"OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        left, ends, growth = kills, Counter[str](), 0
        while ends["whole"] == 0:
            begun = len(server.requests)
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
            if left:
                after = begun + rng.randint(1, 2 * num_prompts // (kills + 1))
                while len(server.requests) < after and process.poll() is None:
                    time.sleep(0.002)
            if left and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                left -= 1
                ends["killed"] += 1
                continue
            printed = process.communicate(timeout=600)[0]
            assert process.returncode in (0, 7)
            ends["whole" if process.returncode == 0 else "redirected"] += 1
            growth = max(growth, int(printed))

    assert set(met) == set(kinds)
    assert ends["redirected"] <= met["redirect"] <= ends["redirected"] + ends["killed"] + CONCURRENCY
    questions = make(num_prompts)
    with JudgeLedger(folder / "judgements.jsonl") as ledger:
        answers = read_ledger(folder / "judgements.jsonl")
        invalid = sum(len(ledger.invalid_replies(answer.key)) for answer in answers)
    assert len(answers) == len(questions) == len(asked)
    assert {answer.verdict for answer in answers} == {"A", "B", "tie"}
    # Each answer that was sent is in the ledger, but for those under way at a kill; an unreadable one asks again.
    sent_in_vain = sum(asked.values()) - len(answers) - invalid
    assert 0 <= sent_in_vain <= ends["killed"] * CONCURRENCY
    assert invalid <= met["another language"] <= invalid + ends["killed"] * CONCURRENCY
    # Eight replies of at most 16 MiB at a time, twice each where one is handed on; 50 MB each would be far more.
    assert growth < 400
    assert elsewhere.requests == elsewhere.looks == []
    assert {request["key"] for request in server.requests} == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in path.read_bytes() for path in folder.iterdir())


def test_every_fault_is_outlived(tmp_path: Path) -> None:
    judge_all(tmp_path, num_prompts=30, kills=1, each=1, timeout=2.0, seed=1)


@pytest.mark.slow
def test_three_hundred_questions_are_answered_by_a_server_of_many_faults(tmp_path: Path) -> None:
    judge_all(tmp_path, num_prompts=150, kills=8, each=8, timeout=5.0, seed=2)
