"""The judge against a real server that speaks OpenAI's protocol, with a small language model on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_dpo.eval.judges.chat_judge import OracleJudge
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.template import judge_template
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.questions import make_questions
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from helpers_served import Served, served_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_model(tmp_path_factory.mktemp("model")) as served:
        yield served


def test_a_real_server_is_asked_with_all_that_may_be_refused(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    base_url, model = server
    oracle = GPT4Oracle(model, base_url=base_url, max_tokens=40, max_retries=1)
    judge = OracleJudge(
        oracle,
        template=judge_template("hh-v1"),
        json_schema=True,
        logprobs=True,
        max_attempts=2,
        name="small",
    )
    prompts = [
        PromptRecord.of([{"role": "user", "content": text}]) for text in ("Say hello.", "What is 2 + 2?")
    ]
    outputs = [
        OutputRecord(prompt.id, name, 0, text, 3, True)
        for prompt in prompts
        for name, text in (("kind", "Hello! It is 4."), ("rude", "Go away."))
    ]
    questions = make_questions(prompts, outputs, [("kind", "rude")]).questions
    with JudgeLedger(tmp_path / "judgements.jsonl") as ledger:
        outcome = run_judging(questions, judge, ledger, concurrency=2, progress=False)
        again = run_judging(questions, judge, ledger, concurrency=2, progress=False)
    # So small a model judges at random, and often not in the form asked for: what counts is that all are answered.
    assert len(outcome.records) == 4
    assert {record.verdict for record in outcome.records} <= {"A", "B", "tie", "invalid"}
    assert all(record.completion_tokens > 0 for record in outcome.records)
    assert (again.num_asked, again.records) == (0, outcome.records)
