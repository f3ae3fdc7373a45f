"""``evaluate`` where a server writes the outputs: from file to report, stopped and killed, its key nowhere."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import evaluate
from dynamic_dpo.utils.json_lines import read_json_lines
from helpers_evaluation import KEY, kill_when, start, write_config, write_hh_rows
from scripted_server import Answer, Request, ScriptedServer, completion, error, model_list

NUM_PROMPTS, NUM_SAMPLES = 6, 3


def answer(request: Request) -> Answer:
    """Write what hangs on model, prompt and seed; refuse one prompt of one model."""
    body = request["body"]
    asked = body["messages"][-1]["content"]
    if body["model"] == "trained" and asked == "w4":
        return error(400, "maximum context length is 4 tokens")
    seed = body["seed"]
    return completion(
        f"{body['model']} on {asked}: " + "so " * (seed % 5 + 1),
        finish_reason="length" if seed % 7 == 0 else "stop",
        usage=(9, seed % 5 + 4),
        delay=0.01,
    )


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer(answer) as server:
        server.models = model_list("start", "trained", root="/models/some")
        yield server


def config_of(folder: Path, policy: ScriptedServer, **server: Any) -> Path:
    rows = write_hh_rows(folder.with_name("harmless-base.jsonl"), 9)
    address = {
        "base_url": policy.base_url,
        "concurrency": 3,
        "api_key_env": "OPENAI_API_KEY",
        "max_retries": 1,
    }
    return write_config(
        folder,
        {"start": "start", "trained": "trained"},
        rows,
        "",
        dataset={"max_samples": NUM_PROMPTS, "seed": 3},
        generation={"engine": "server", "num_samples": NUM_SAMPLES, "server": address | server},
        judge={"base_url": None, "template": "custom", "kind": "function",
               "function": "builtins:len", "concurrency": 4},
    )  # fmt: skip


def outputs_of(folder: Path) -> list[dict[str, Any]]:
    return sorted(
        read_json_lines(folder / "generations.jsonl"), key=lambda row: json.dumps(row, sort_keys=True)
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_lets_a_server_write_and_reports_on_it_without_its_key(
    policy: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    config = config_of(out, policy)
    assert evaluate.main(["--config", str(config)]) == 0
    printed = capsys.readouterr()
    written = files_of(out)
    for content in [*written.values(), printed.out.encode(), printed.err.encode()]:
        assert KEY.encode() not in content
    assert {request["key"] for request in [*policy.requests, *policy.looks]} == {f"Bearer {KEY}"}
    page = written["report.md"].decode()
    assert policy.base_url in page
    assert "engine" in page
    assert "/models/some" in page
    rows = outputs_of(out)
    assert len([row for row in rows if "text" in row]) == (2 * NUM_PROMPTS - 1) * NUM_SAMPLES
    assert [row["left_out"] for row in rows if "left_out" in row] == [
        "the server refuses it (status 400): maximum context length is 4 tokens"
    ]
    assert all(
        ("truncated" in row["flags"]) == (row["finish_reason"] == "length") for row in rows if "text" in row
    )
    asked = len(policy.requests)
    assert evaluate.main(["--config", str(config)]) == 0
    assert evaluate.main(["--config", str(config), "--stage", "report"]) == 0
    assert len(policy.requests) == asked


def test_a_stage_alone_refuses_what_another_server_wrote(
    policy: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "out", policy)
    assert evaluate.main(["--config", str(config)]) == 0
    command = ["--config", str(config), "--stage", "report"]
    assert evaluate.main([*command, "generation.server.concurrency=1"]) == 0
    assert evaluate.main([*command, "generation.server.base_url=http://127.0.0.1:1/v1"]) == 2
    assert "generation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scoring.reference=start"], "scoring.reference needs the models' own files"),
        (["generation.server.base_url=null"], "generation.server.base_url does not say where it is"),
        (["generation.server.timeout=0"], "generation.server.timeout must be greater than 0"),
        (["generation.server.url=http://a"], "unknown key generation.server.url"),
    ],
)
def test_a_mistake_about_the_server_is_one_message_and_exit_code_2(
    policy: ScriptedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    assert evaluate.main(["--config", str(config_of(tmp_path / "out", policy)), *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not policy.requests


def test_a_refused_key_ends_the_command_with_one_sentence(
    policy: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.models = error(401, f"Incorrect API key provided: {KEY}")
    assert evaluate.main(["--config", str(config_of(tmp_path / "out", policy))]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line == (
        f"error: {policy.base_url} refused the key (status 401): set the environment variable OPENAI_API_KEY to one "
        "that may use this model"
    )


def paid(policy: ScriptedServer) -> Counter[str]:
    """Questions that got an output, and how often; not the refused prompt and the short one that is tried for it."""
    bodies = [request["body"] for request in policy.requests if answer(request).status == 200]
    return Counter(
        json.dumps(body, sort_keys=True) for body in bodies if body["messages"][-1]["content"] != "Hi"
    )


def kill_at_random(times: int, policy: ScriptedServer, tmp_path: Path, number: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(["--config", str(config_of(whole, policy))])
    process.join(120)
    assert process.exitcode == 0
    once = paid(policy)
    policy.requests.clear()
    config = config_of(killed, policy)
    draw = random.Random(number)
    num_killed = 0
    for target in sorted(draw.randrange(len(once)) for _ in range(times)):
        process = start(["--config", str(config)], output=tmp_path / "output")
        # At least one question into its work, when it has its signals in hand.
        target = max(target, len(policy.requests) + 1)
        num_killed += kill_when(process, lambda target=target: len(policy.requests) >= target, number=number)
        if number == signal.SIGTERM:
            assert process.exitcode == 143
    process = start(["--config", str(config)])
    process.join(120)
    assert process.exitcode == 0
    assert num_killed >= times - 1
    asked = paid(policy)
    assert set(asked) == set(once)
    # At a SIGKILL what is under way is lost, at most three questions; at a SIGTERM nothing.
    assert sum(asked.values()) - len(asked) <= (3 * num_killed if number == signal.SIGKILL else 0)
    assert outputs_of(killed) == outputs_of(whole)
    ours, theirs = files_of(killed), files_of(whole)
    created = [json.loads(files["manifest.json"])["created"].encode() for files in (ours, theirs)]
    for name in ("report.html", "report.md", "results.csv", "summary.json"):
        assert ours[name].replace(created[0], b"") == theirs[name].replace(created[1], b""), name


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_at_random_it_asks_nothing_twice_and_writes_the_same(
    policy: ScriptedServer, tmp_path: Path, number: int
) -> None:
    kill_at_random(3, policy, tmp_path, number)


@pytest.mark.slow
def test_killed_sixty_times_it_asks_nothing_twice_and_writes_the_same(
    policy: ScriptedServer, tmp_path: Path
) -> None:
    kill_at_random(60, policy, tmp_path, signal.SIGKILL)
