"""The preset of Arena-Hard from its published files to its table, with a judge whose labels are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dynamic_dpo.cli import evaluate
from scripted_server import Answer, Request, ScriptedServer, completion

# What the judge says of each hard question: of the game with the baseline first, and of the other.
LABELS = {
    "u0": ("[[B>>A]]", "[[A>B]]"),
    "u1": ("[[A=B]]", "[[A=B]]"),
    "u2": ("[[A>B]]", "My verdict: [[B>>A]]."),
}


def answers(path: Path, model: str) -> Path:
    lines = [
        {
            "uid": uid,
            "model": model,
            "messages": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": {"answer": f"{model} says {uid}" + "!" * n}},
            ],
        }
        for n, uid in enumerate(("u0", "u1", "u2", "u3"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def judge(request: Request) -> Answer:
    question = request["body"]["messages"][-1]["content"]
    uid = next(uid for uid in (*LABELS, "u3") if f"says {uid}" in question)
    baseline_first = question.index("theirs says") < question.index("mine says")
    return completion(f"I compared them.\n\n{LABELS[uid][0 if baseline_first else 1]}")


def test_published_files_give_the_table_in_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    questions = tmp_path / "question.jsonl"
    kinds = {"u0": "hard_prompt", "u1": "hard_prompt", "u2": "hard_prompt", "u3": "creative_writing"}
    questions.write_text(
        "".join(json.dumps({"uid": u, "category": k, "prompt": f"Ask {u}"}) + "\n" for u, k in kinds.items())
    )
    with ScriptedServer(judge) as server:
        config = {
            "preset": "arena_hard",
            "dataset": {"name": str(questions)},
            "models": {
                "o3_mini_2025_01_31": f"outputs:{answers(tmp_path / 'o3.jsonl', 'theirs')}",
                "trained": f"outputs:{answers(tmp_path / 'mine.jsonl', 'mine')}",
            },
            "judge": {"base_url": server.base_url},
            "statistics": {"bootstrap": 200},
            "output": {"dir": str(tmp_path / "out")},
        }
        path = tmp_path / "evaluation.yaml"
        path.write_text(json.dumps(config))
        assert evaluate.main(["--config", str(path)]) == 0
        assert len(server.requests) == 6
        assert {request["body"]["model"] for request in server.requests} == {"gpt-4.1"}
    with (tmp_path / "out" / "arena_hard.csv").open() as file:
        scores = {row["model"]: float(row["score"]) for row in csv.DictReader(file)}
    # 3 + 1 of 4, a half of 1 twice, and 0 of 1 + 3.
    assert scores["trained"] == pytest.approx(5 / 10, abs=2e-3)
    assert "## Arena-Hard score, all prompts" in capsys.readouterr().out
