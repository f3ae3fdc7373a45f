"""The judge against a real server that speaks OpenAI's protocol, with a small language model on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_dpo.cli import evaluate
from dynamic_dpo.eval.judges.chat_judge import OracleJudge
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.template import judge_template
from dynamic_dpo.eval.judging.ledger import JudgeLedger, read_ledger
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


def test_thirty_prompts_are_judged_from_end_to_end(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    base_url, model = server
    questions = [f"What is {n} + {n}?" for n in range(30)]
    (tmp_path / "prompts.json").write_text(json.dumps([{"instruction": text} for text in questions]))
    for name, answer in (("right", "It is {}."), ("rude", "Do your own sums.")):
        rows = [
            {"instruction": text, "output": answer.format(2 * n), "generator": name}
            for n, text in enumerate(questions)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    settings = {
        "dataset": {"name": str(tmp_path / "prompts.json"), "max_samples": None},
        "models": {name: f"outputs:{tmp_path / name}.json" for name in ("right", "rude")},
        "baseline": "rude",
        "judge": {"base_url": base_url, "template": "request-v1", "max_invalid_retries": 1, "concurrency": 2},
        "gpt4_oracle": {"model": model, "max_tokens": 48, "timeout": 120},
        "output": {"dir": str(tmp_path / "out")},
    }
    config = tmp_path / "evaluation.yaml"
    config.write_text(json.dumps(settings))
    assert evaluate.main(["--config", str(config)]) == 0
    report = capsys.readouterr().out
    records = read_ledger(tmp_path / "out" / "judgements.jsonl")
    # Every prompt in both orders, each answered by the model itself.
    assert len(records) == 60
    assert {(record.first, record.second) for record in records} == {("right", "rude"), ("rude", "right")}
    assert all(record.completion_tokens > 0 for record in records)
    assert "| right | rude |" in report
    assert (tmp_path / "out" / "report.html").is_file()
    # What was answered is not asked again, and gives the same numbers.
    numbers = (tmp_path / "out" / "summary.json").read_bytes()
    asked = (tmp_path / "out" / "judgements.jsonl").read_bytes()
    assert evaluate.main(["--config", str(config)]) == 0
    assert (tmp_path / "out" / "summary.json").read_bytes() == numbers
    assert (tmp_path / "out" / "judgements.jsonl").read_bytes() == asked
