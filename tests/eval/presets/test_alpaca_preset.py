"""The preset of AlpacaEval 2 in one command: files in its published forms, and a judge whose weights are known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from dynamic_dpo.cli import evaluate
from dynamic_dpo.cli.evaluations import export
from scripted_server import Answer, Request, ScriptedServer, completion

NUM = 12
# How surely the judge prefers the model on each question.
WEIGHTS = [(number + 1) / (NUM + 2) for number in range(NUM)]


def outputs(path: Path, model: str, length: int) -> Path:
    entries = [
        {
            "dataset": "koala",
            "instruction": f"Ask {number}",
            "output": f"{model} says {number}." + "!" * (length * (number % 5)),
            "generator": model,
        }
        for number in range(NUM)
    ]
    path.write_text(json.dumps(entries))
    return path


def judge(request: Request) -> Answer:
    body = request["body"]
    assert (body["max_tokens"], body["top_logprobs"]) == (1, 5)
    question = body["messages"][-1]["content"]
    number = int(question.split("Ask ")[1].split("\n")[0])
    own_first = question.index("mine says") < question.index("theirs says")
    first = WEIGHTS[number] if own_first else 1 - WEIGHTS[number]
    others = [
        {"token": t, "logprob": math.log(p / 2), "bytes": None} for t, p in (("m", first), ("M", 1 - first))
    ]
    token = {"token": "m", "logprob": others[0]["logprob"], "bytes": None, "top_logprobs": others}
    return completion("m", finish_reason="length", logprobs={"content": [token], "refusal": None})


def test_published_files_give_the_numbers_in_one_command_and_go_out_with_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    (tmp_path / "question.txt").write_text(
        "<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>"
    )
    theirs = outputs(tmp_path / "theirs.json", "theirs", 30)
    difficulties = tmp_path / "df_gamed.csv"
    header = "model,index,std_delta_len,preference,instruction_difficulty,not_gamed_baseline\n"
    rows = [
        f"{name},{number},{shorter},{share},{number - 6},False\n"
        for name, shorter, share in (("verbose", -0.5, 0.6), ("concise", 1.0, 0.3))
        for number in range(NUM)
    ]
    difficulties.write_text(header + "".join(rows))
    with ScriptedServer(judge) as server:
        config = {
            "preset": "alpaca_eval_2",
            "dataset": {"name": str(theirs)},
            "models": {
                "gpt4_1106_preview": f"outputs:{theirs}",
                "trained": f"outputs:{outputs(tmp_path / 'mine.json', 'mine', 10)}",
            },
            "judge": {"base_url": server.base_url, "template_file": str(tmp_path / "question.txt")},
            "statistics": {"bootstrap": 200, "alpaca_eval": {"difficulties": str(difficulties)}},
            "output": {"dir": str(tmp_path / "out")},
        }
        path = tmp_path / "evaluation.yaml"
        path.write_text(json.dumps(config))
        assert evaluate.main(["--config", str(path)]) == 0
        # One order, drawn for each question.
        assert len(server.requests) == NUM
        assert {request["body"]["model"] for request in server.requests} == {"gpt-4-1106-preview"}
    with (tmp_path / "out" / "alpaca_eval.csv").open() as file:
        (row,) = csv.DictReader(file)
    mean = sum(WEIGHTS) / NUM
    assert (row["model"], row["baseline"], row["num_left_out"]) == ("trained", "gpt4_1106_preview", "0")
    assert float(row["win_rate"]) == pytest.approx(mean, abs=1e-6)
    deviation = math.sqrt(sum((weight - mean) ** 2 for weight in WEIGHTS) / (NUM - 1))
    assert float(row["win_rate_error"]) == pytest.approx(deviation / math.sqrt(NUM), abs=1e-6)
    # 8/14 to 12/14 are won, 7/14 is a tie.
    assert float(row["discrete_win_rate"]) == pytest.approx(5.5 / 12, abs=1e-6)
    assert 0 < float(row["length_controlled"]) < 1
    assert "## AlpacaEval 2" in capsys.readouterr().out

    out = tmp_path / "annotations.json"
    assert export.main(["--config", str(path), "--to", "alpaca-annotations", "--out", str(out)]) == 0
    # Both files are in the set's order, whatever the order of the draw.
    written = tmp_path / "model_outputs.json"
    assert export.main(["--config", str(path), "--to", "alpaca-outputs", "--out", str(written)]) == 0
    instructions = [entry["instruction"] for entry in json.loads(written.read_text())]
    assert instructions == [f"Ask {number}" for number in range(NUM)]
    entries = json.loads(out.read_text())
    assert [entry["index"] for entry in entries] == list(range(NUM))
    assert [entry["instruction"] for entry in entries] == [f"Ask {number}" for number in range(NUM)]
    assert [entry["preference"] for entry in entries] == pytest.approx([1 + weight for weight in WEIGHTS])


@pytest.mark.parametrize(
    ("difficulties", "message"),
    [
        ("absent.csv", "alpaca_eval.difficulties names no file: absent.csv"),
        ("hf://datasets/tatsu-lab/alpaca_eval/absent.csv", "could not be fetched from the hub"),
    ],
)
def test_a_file_that_the_report_will_need_is_missed_before_anything_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    difficulties: str,
    message: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    question = tmp_path / "question.txt"
    question.write_text("<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>")
    theirs = outputs(tmp_path / "theirs.json", "theirs", 30)
    with ScriptedServer(judge) as server:
        config = {
            "preset": "alpaca_eval_2",
            "dataset": {"name": str(theirs)},
            "models": {"gpt4_1106_preview": f"outputs:{theirs}", "trained": f"outputs:{theirs}"},
            "judge": {"base_url": server.base_url, "template_file": str(question)},
            "statistics": {"alpaca_eval": {"difficulties": difficulties}},
            "output": {"dir": str(tmp_path / "out")},
        }
        path = tmp_path / "evaluation.yaml"
        path.write_text(json.dumps(config))
        assert evaluate.main(["--config", str(path)]) == 2
        assert server.requests == []
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
