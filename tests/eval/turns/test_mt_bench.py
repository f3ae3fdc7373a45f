"""MT-Bench from end to end: a tiny model on its own first answers, a judge whose grades are known, tables by hand."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import evaluate
from dynamic_dpo.cli.evaluations import export
from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import import_mt_bench_grades
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.leaderboard.results import read_results
from dynamic_dpo.eval.records import GradeRecord, JudgementRecord
from helpers_evaluation import save_models
from helpers_pages import Page
from scripted_server import Answer, Request, ScriptedServer, completion

KINDS = {"81": "writing", "101": "reasoning", "111": "math"}
# What the judge gives the published answers, by question and turn; the tiny model gets 2 less.
GRADES = {("81", 1): 9, ("81", 2): 8, ("101", 1): 5, ("101", 2): 4, ("111", 1): 7, ("111", 2): 3}
QUESTIONS = [
    {
        "question_id": int(id_),
        "category": kind,
        "turns": [f"w{id_[0]} first {id_}", f"w{id_[-1]} second {id_}"],
        **({"reference": [f"right {id_} one", f"right {id_} two"]} if kind == "math" else {}),
    }
    for id_, kind in KINDS.items()
]


def stored(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_models(tmp_path_factory.mktemp("models"))["trained"]


def asked_of(request: Request) -> tuple[str, int, str]:
    """Return question, turn and text of what the judge is asked."""
    text = request["body"]["messages"][-1]["content"]
    found = re.findall(r"(first|second) (\d+)", text)
    return found[0][1], 2 if any(which == "second" for which, _ in found) else 1, text


def judge(request: Request) -> Answer:
    id_, turn, text = asked_of(request)
    # What the tiny model says are words like w3.
    grade = GRADES[id_, turn] - (0 if "published answer" in text else 2)
    return completion(f"I have read it.\n\nRating: [[{grade}]]")


def write_config(folder: Path, server: ScriptedServer, tiny: str, **changes: Any) -> Path:
    answers = [
        {
            "question_id": int(id_),
            "model_id": "vicuna",
            "choices": [
                {"index": 0, "turns": [f"published answer one {id_}", f"published answer two {id_}"]}
            ],
        }
        for id_ in KINDS
    ]
    config: dict[str, Any] = {
        "preset": "mt_bench",
        "dataset": {"name": str(stored(folder / "question.jsonl", QUESTIONS))},
        "models": {"published": f"outputs:{stored(folder / 'vicuna.jsonl', answers)}", "trained": tiny},
        "generation": {"max_new_tokens": 5, "device": "cpu", "top_p": 0.9},
        "judge": {"base_url": server.base_url},
        "gpt4_oracle": {"model": "a-judge"},
        "statistics": {"bootstrap": 200},
        "output": {"dir": str(folder / "out")},
    }
    for name, section in changes.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "evaluation.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")


def test_known_grades_give_the_known_table(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(judge) as server:
        assert evaluate.main(["--config", str(write_config(tmp_path, server, tiny))]) == 0
        assert len(server.requests) == 12
        questions = [asked_of(request) for request in server.requests]
    out = tmp_path / "out"
    with (out / "results.csv").open() as file:
        found = {(row["model"], row["what"]): row["grade"] for row in csv.DictReader(file)}
    expected = {
        "overall": 36 / 6,
        "turn 1": 21 / 3,
        "turn 2": 15 / 3,
        "category math": 5.0,
        "category reasoning": 4.5,
        "category writing": 8.5,
    }
    for what, grade in expected.items():
        assert float(found["published", what]) == pytest.approx(grade)
        assert float(found["trained", what]) == pytest.approx(grade - 2)
    assert float(found["trained", "difference to published"]) == pytest.approx(-2.0)
    printed = capsys.readouterr().out
    assert "| published | 6.00 |" in printed
    assert "| published | 5.00 | 4.50 | 8.50 |" in printed
    # A leaderboard of several evaluations has the grades, too.
    board = {result.model: result.values["grade"] for result in read_results(out)}
    assert {model: value.value for model, value in board.items()} == pytest.approx(
        {"published": 6.0, "trained": 4.0}
    )
    assert all(value.low is not None and value.low < value.value for value in board.values())
    # Right answers are shown to the judge where the question has them, and only up to the turn.
    for id_, turn, text in questions:
        assert (f"right {id_} one" in text) == (id_ == "111")
        assert (f"right {id_} two" in text) == (id_ == "111" and turn == 2)
    page = Page((out / "report.html").read_text())
    # What must be read first: the tiny model's answers are cut at the limit.
    assert page.headings == ["Read this first", "Grades", "By category", "Side by side"]
    assert page.open == []
    assert (out / "report.html").read_text().count('<polygon class="radar') == 2


def test_grades_go_out_in_the_file_of_mt_bench_and_come_back(tmp_path: Path, tiny: str) -> None:
    def stubborn(request: Request) -> Answer:
        return completion("No.") if asked_of(request)[:2] == ("81", 2) else judge(request)

    with ScriptedServer(stubborn) as server:
        config = str(write_config(tmp_path, server, tiny))
        evaluate.main(["--config", config])
    out = tmp_path / "a-judge_single.jsonl"
    assert export.main(["--config", config, "--to", "mt-bench", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = {(row["model"], row["question_id"], row["turn"]): row for row in lines}
    assert len(rows) == len(lines) == 12
    assert rows["published", 101, 1]["score"] == 5
    assert rows["published", 81, 2]["score"] == -1
    assert rows["trained", 111, 2]["judgment"] == "I have read it.\n\nRating:"
    back = import_mt_bench_grades(out)
    assert {(record.model, record.id, record.turn): record.grade for record in back} == {
        (model, str(id_), turn - 1): None if row["score"] == -1 else row["score"]
        for (model, id_, turn), row in rows.items()
    }
    assert export.main(["--config", config, "--to", "arena-hard", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": 0}, "'score' must be from 1 to 10, or -1"),
        ({"score": "5"}, "'score' must be from 1 to 10, or -1"),
        ({"turn": 0}, "'turn' must be a whole number of at least 1"),
        ({"judge": None}, "must have a question_id and a judge"),
        ({"model": ""}, "'model' must be a non-empty string"),
    ],
)
def test_malformed_grades_are_refused_by_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    line = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 5, "turn": 1}
    with pytest.raises(DataError, match=message):
        import_mt_bench_grades(stored(tmp_path / "grades.jsonl", [line | changes]))


def test_the_second_turn_goes_on_from_the_models_own_first_answer(tmp_path: Path, tiny: str) -> None:
    with ScriptedServer(judge) as server:
        evaluate.main(["--config", str(write_config(tmp_path, server, tiny))])
        shown = {
            asked_of(request)[:2]: asked_of(request)[2]
            for request in server.requests
            if "published" not in asked_of(request)[2]
        }
    rows = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    firsts = {}
    for id_ in KINDS:
        conversation = shown[id_, 2].split("<conversation>\n")[1].split("\n</conversation>")[0]
        first, second = re.fullmatch(
            rf"User: w\d first {id_}\n\nAssistant: (.*?)\n\nUser: w\d second {id_}\n\nAssistant: (.*)",
            conversation,
            re.DOTALL,
        ).groups()  # type: ignore[union-attr]
        assert f"Assistant: {first}\n" in shown[id_, 1]
        firsts[id_] = first
        assert {first, second} <= {row["text"] for row in rows}
    # Each category has its own temperature, and so its own fingerprint: 0, 0 and 0.7.
    assert len({row["fingerprint"] for row in rows}) == 2


def test_a_second_run_writes_and_asks_nothing_and_gives_the_same_files(tmp_path: Path, tiny: str) -> None:
    with ScriptedServer(judge) as server:
        config = write_config(tmp_path, server, tiny)
        evaluate.main(["--config", str(config), "--stage", "prepare"])
        evaluate.main(["--config", str(config), "--stage", "generate"])
        assert not server.requests
        assert evaluate.main(["--config", str(config), "judge.budget.calls=5"]) == evaluate.BUDGET_STOPPED
        assert "7 answers have no grade yet" in (tmp_path / "out" / "report.md").read_text()
        assert evaluate.main(["--config", str(config)]) == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert evaluate.main(["--config", str(config)]) == 0
        assert len(server.requests) == 12
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    records = read_ledger(tmp_path / "out" / "grades.jsonl", GradeRecord)
    assert sorted((record.id, record.turn, record.model) for record in records) == sorted(
        {
            (record.id, turn, model)
            for record in records
            for turn in (0, 1)
            for model in ("published", "trained")
        }
    )


def test_a_reply_without_a_grade_is_asked_again_and_then_counted(tmp_path: Path, tiny: str) -> None:
    def stubborn(request: Request) -> Answer:
        id_, turn, _ = asked_of(request)
        return completion("I would rather not.") if (id_, turn) == ("81", 2) else judge(request)

    with ScriptedServer(stubborn) as server:
        config = write_config(tmp_path, server, tiny, judge={"max_invalid_retries": 1})
        evaluate.main(["--config", str(config)])
        assert len(server.requests) == 14
    report = (tmp_path / "out" / "report.md").read_text()
    # 28 of 5 grades.
    assert "| published | 5.60 |" in report
    assert "gave no readable grade to 1 answers of published" in report


def test_one_model_is_enough_for_grades(tmp_path: Path, tiny: str) -> None:
    with ScriptedServer(judge) as server:
        path = write_config(tmp_path, server, tiny)
        config = json.loads(path.read_text())
        del config["models"]["published"]
        path.write_text(json.dumps(config))
        assert evaluate.main(["--config", str(path)]) == 0
    assert "| trained | 4.00 |" in (tmp_path / "out" / "report.md").read_text()


def test_conversations_are_compared_in_both_orders_turn_by_turn(tmp_path: Path, tiny: str) -> None:
    def prefers(request: Request) -> Answer:
        id_, turn, text = asked_of(request)
        first = text.split("</conversation_a>")[0]
        # The published one wins every first turn; second turns are ties, but for a judge that prefers A on 111.
        if turn == 2:
            return completion("[[A]]" if id_ == "111" else "Equal. [[C]]")
        return completion("[[A]]" if "published" in first else "[[B]]")

    with ScriptedServer(prefers) as server:
        config = write_config(tmp_path, server, tiny, turns={"judging": "pairs"})
        assert evaluate.main(["--config", str(config)]) == 0
        assert len(server.requests) == 12
    records = read_ledger(tmp_path / "out" / "judgements.jsonl", JudgementRecord)
    assert {(record.sample, record.winner) for record in records if record.sample == 0} == {(0, "published")}
    with (tmp_path / "out" / "results.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if not row["category"])
    # Of the trained model: 6 lost, 4 tied, one won and one lost by place; turns of a conversation are one prompt.
    assert (row["model"], row["wins"], row["losses"], row["ties"]) == ("trained", "1", "7", "4")
    assert row["prompts"] == "3"


def test_right_answers_come_from_a_file_of_the_users(tmp_path: Path, tiny: str) -> None:
    right = [{"question_id": 81, "model_id": "gpt-4", "choices": [{"turns": ["mine one", "mine two"]}]}]
    path = stored(tmp_path / "gpt-4.jsonl", right)
    with ScriptedServer(judge) as server:
        config = write_config(tmp_path, server, tiny, turns={"references": str(path)})
        evaluate.main(["--config", str(config)])
        for id_, turn, text in map(asked_of, server.requests):
            assert ("mine one" in text) == (id_ == "81")
            assert ("mine two" in text) == (id_ == "81" and turn == 2)
            assert "right 111" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": {"template": "hh-v1"}}, "judge.template has no effect while turns.enabled"),
        ({"gpt4_oracle": {"seed": 7}}, "gpt4_oracle.seed has no effect while turns.enabled"),
        ({"gpt4_oracle": {"randomize_order": False}}, "gpt4_oracle.randomize_order has no effect"),
        ({"judges": {"other": {"kind": "openai"}}}, "judges (other) have no effect on conversations"),
        ({"judge": {"kind": "function", "function": "math:sqrt", "base_url": None}}, "set it to openai"),
        ({"generation": {"num_samples": 2}}, "conversations are written once"),
        ({"turns": {"judging": "pairs"}, "judge": {"both_orders": False}}, "asks in both orders"),
        ({"turns": {"temperatures": {"math": -1}}}, "math must be a number of at least 0"),
        ({"turns": {"template_file": "none.jsonl"}}, "cannot be read as JSON lines"),
        ({"models": {"human": "dataset:reference"}}, "has answers to one turn alone"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with ScriptedServer(judge) as server:
        assert evaluate.main(["--config", str(write_config(tmp_path, server, tiny, **changes))]) in (1, 2)
        assert not server.requests
    assert message in capsys.readouterr().err.replace("\n", " ")
