"""Many evaluations as one table: what stands in which column, who is best, and that no name breaks a file."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli.main import main
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.leaderboard.board import METRICS, Board, make_board
from dynamic_dpo.eval.leaderboard.files import CSV_COLUMNS, csv_rows, html, latex, markdown
from dynamic_dpo.eval.leaderboard.results import ModelResult, Task, Value, read_results
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.write import write_evaluation_report
from dynamic_dpo.eval.scoring.metrics import FrontierPoint
from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings
from hostile_texts import HARMLESS, HOSTILE

PROMPTS = [PromptRecord.of([{"role": "user", "content": f"question {n}"}]) for n in range(10)]


def write_evaluation(
    folder: Path, model: str, wins: int, *, baseline: str = "start", source: str = "set.jsonl", **more: Any
) -> Path:
    """Write the report of an evaluation in which a model wins so many of nine prompts; one has no verdict."""
    outputs = [
        OutputRecord(prompt.id, name, 0, "word " * length, length, True, [])
        for prompt in PROMPTS
        for name, length in ((model, 4), (baseline, 3))
    ]
    judgements = [
        JudgementRecord(
            f"{model}-{n}",
            prompt.id,
            0,
            "judge",
            model,
            baseline,
            "invalid" if n == 9 else "A" if n < wins else "B",
        )
        for n, prompt in enumerate(PROMPTS)
    ]
    data = EvaluationData(
        PROMPTS,
        outputs,
        judgements,
        title="t",
        created="now",
        baseline=baseline,
        num_questions=10,
        provenance={"prompts": {"source": source}},
        **more,
    )
    write_evaluation_report(folder, data)
    return folder


def line_of(board: Board, name: str) -> dict[str, Value]:
    numbers = dict(board.lines)[name]
    return {
        column.header: value
        for column, value in zip(board.columns, numbers, strict=True)
        if value is not None
    }


def test_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    frontier = [FrontierPoint("new", 1.25, 0.7), FrontierPoint("start", 0.0, 0.5)]
    folder = write_evaluation(tmp_path / "one", "new", 6, frontier=frontier)
    report = json.loads((folder / "results.json").read_text())
    [found] = read_results(folder)
    overall = report["pairs"][0]["overall"]
    assert found.task == Task("set.jsonl", 10, "start", "judge")
    assert (found.evaluation, found.model) == ("one", "new")
    # Six wins of nine verdicts; one question of ten has none.
    assert found.values["win_rate"].value == pytest.approx(6 / 9)
    assert found.values["win_rate"][1:] == (overall["interval"]["low"], overall["interval"]["high"])
    assert found.values["invalid"].value == 0.1
    assert (found.values["tokens"].value, found.values["characters"].value) == (4.0, 20.0)
    assert found.values["kl"].value == 1.25
    assert read_results(folder / "results.json") == [found]


def test_arena_hards_scores_have_columns_of_their_own(tmp_path: Path) -> None:
    both = [
        JudgementRecord(
            f"{n}-{order}", prompt.id, 0, "judge", *order, "A" if (order[0] == "new") == (n < 7) else "B"
        )
        for n, prompt in enumerate(PROMPTS)
        for order in (("new", "start"), ("start", "new"))
    ]
    data = EvaluationData(
        PROMPTS,
        [],
        both,
        title="t",
        created="now",
        baseline="start",
        num_questions=20,
        arena=ArenaSettings(enabled=True),
    )
    write_evaluation_report(tmp_path, data)
    [found] = read_results(tmp_path)
    assert found.values["arena"].value == pytest.approx(0.7, abs=0.02)
    assert found.values["arena"].low < 0.7 < found.values["arena"].high


def test_alpacaevals_numbers_have_columns_of_their_own_and_come_first(tmp_path: Path) -> None:
    [found] = read_results(write_evaluation(tmp_path / "asked", "new", 6, alpaca=True))
    # Six of nine verdicts were won, and every output is one word longer.
    assert found.values["weighted"] == Value(pytest.approx(6 / 9))
    assert 0.5 < found.values["length_controlled"].value < 0.8
    assert make_board([found]).ranked_by.metric == "length_controlled"
    [plain] = read_results(write_evaluation(tmp_path / "plain", "new", 6))
    assert not plain.values.keys() & {"weighted", "length_controlled"}


def test_models_of_several_evaluations_stand_in_one_column_best_first(tmp_path: Path) -> None:
    places = [write_evaluation(tmp_path / name, name, wins) for name, wins in (("a", 3), ("b", 8), ("c", 5))]
    board = make_board([result for place in places for result in read_results(place)])
    assert [name for name, _ in board.lines] == ["b", "c", "a"]
    assert len(board.tasks) == 1
    assert board.columns[0].header == "win rate"
    text = markdown(board)
    assert text.count("**") == 2 * sum(METRICS[column.metric].is_ranked for column in board.columns)
    assert "| b | **88.9** [" in text
    by_length = make_board([result for place in places for result in read_results(place)], by="tokens")
    assert by_length.ranked_by.metric == "tokens"


def test_other_prompts_or_another_baseline_are_other_columns(tmp_path: Path) -> None:
    places = [
        write_evaluation(tmp_path / "a", "new", 6),
        write_evaluation(tmp_path / "b", "new", 3, source="other.jsonl"),
        write_evaluation(tmp_path / "c", "new", 8, baseline="strong"),
    ]
    board = make_board([result for place in places for result in read_results(place)])
    rates = [column for column in board.columns if column.metric == "win_rate"]
    assert [column.header for column in rates] == ["win rate (set)", "win rate (other)", "win rate (set)"]
    assert [name for name, _ in board.lines] == ["new"]
    values = [
        value for column, value in zip(board.columns, board.lines[0][1], strict=True) if column in rates
    ]
    assert [round(9 * value.value) for value in values if value is not None] == [6, 3, 8]


def test_a_model_that_was_evaluated_twice_has_two_lines(tmp_path: Path) -> None:
    places = [
        write_evaluation(tmp_path / "seed-1", "new", 6),
        write_evaluation(tmp_path / "seed-2", "new", 4),
    ]
    board = make_board([result for place in places for result in read_results(place)])
    assert [name for name, _ in board.lines] == ["new (seed-1)", "new (seed-2)"]


def test_what_is_missing_is_no_number_and_ranks_last() -> None:
    task = Task("set", 10, "start", "judge")
    board = make_board(
        [
            ModelResult("a", task, "short", {"tokens": Value(5.0)}),
            ModelResult("b", task, "long", {"tokens": Value(9.0), "win_rate": Value(0.5, 0.4, 0.6)}),
        ]
    )
    assert [name for name, _ in board.lines] == ["long", "short"]
    assert line_of(board, "short") == {"tokens": Value(5.0)}
    assert "| short | – | 5 |" in markdown(board)
    assert r"short & -- & 5 \\" in latex(board)


def test_the_csv_file_has_a_row_for_each_number(tmp_path: Path) -> None:
    results = read_results(write_evaluation(tmp_path / "one", "new", 6))
    rows = list(csv.DictReader(io.StringIO(csv_rows(results))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert {row["metric"]: float(row["value"]) for row in rows} == pytest.approx(
        {metric: value.value for metric, value in results[0].values.items()}, abs=1e-6
    )


class _Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("text", [text for text in HOSTILE if len(text) < 5000])
def test_no_name_breaks_a_file(text: str) -> None:
    def board(name: str) -> Board:
        task = Task(name, 3, name, name)
        return make_board(
            [ModelResult(name, task, name, {"win_rate": Value(0.5, 0.1, 0.9), "kl": Value(1.0)})]
        )

    hostile, harmless = board(text), board(HARMLESS)
    assert _Elements(html(hostile)).found == _Elements(html(harmless)).found
    assert len(markdown(hostile).splitlines()) == len(markdown(harmless).splitlines())
    table = markdown(hostile).splitlines()[2]
    assert table.replace("\\|", "").count("|") == markdown(harmless).splitlines()[2].count("|")
    written = latex(hostile)
    assert len(written.splitlines()) == len(latex(harmless).splitlines())
    row = written.splitlines()[5].replace(r"\&", "")
    assert row.count("&") == 2
    # Whatever opens in LaTeX closes again.
    plain = row.replace("\\\\", "").replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    assert "%" not in row.replace(r"\%", "")
    results = [ModelResult(text, Task(text, 1, text, text), text, {"kl": Value(1.0)})]
    assert len(list(csv.reader(io.StringIO(csv_rows(results))))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "format_version is None"),
        ('{"format_version": 99, "pairs": []}', "format_version is 99, expected one of 1, 2"),
        ('{"format_version": 2, "pairs": []}', "is damaged: KeyError 'provenance'"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "numbers.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_results(path)


def test_an_evaluation_that_would_leave_no_line_is_named(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "one", "new", 6)
    numbers = json.loads((folder / "results.json").read_text())
    # Every two models were compared, and none with a baseline.
    (folder / "results.json").write_text(json.dumps(numbers | {"baseline": None}))
    with pytest.raises(DataError, match=r"says nothing of a model against a baseline \(baseline: None\)"):
        read_results(folder)


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")]) == 2
    assert "neither a folder nor a file" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "holds none of summary.json, results.json" in capsys.readouterr().err
    folder = write_evaluation(tmp_path / "one", "new", 6)
    results = read_results(folder)
    with pytest.raises(ConfigError, match="no evaluation has the metric 'elo'; there are win_rate"):
        make_board(results, by="elo")
    with pytest.raises(ConfigError, match="no evaluation was judged by 'me'; judges: judge"):
        make_board(results, judge="me")
    with pytest.raises(DataError, match="no comparison with a baseline"):
        make_board([])


def test_the_command_writes_all_four_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [write_evaluation(tmp_path / name, name, wins) for name, wins in (("a", 3), ("b", 8))]
    assert main(["leaderboard", *map(str, places), "--out", str(tmp_path / "board")]) == 0
    shown = capsys.readouterr().out
    assert "| b | **88.9**" in shown
    assert {path.name for path in (tmp_path / "board").iterdir()} == {
        f"leaderboard.{suffix}" for suffix in ("html", "md", "tex", "csv")
    }
    assert (tmp_path / "board" / "leaderboard.md").read_text() in shown
