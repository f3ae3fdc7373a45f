"""Arena-Hard's tables in a report: the same numbers on the page, in Markdown, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.summary import summarise
from dynamic_dpo.eval.report.write import ARENA_FILE, write_evaluation_report
from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings
from helpers_judgements import judged
from helpers_pages import Page

# By prompt: the category, and the verdicts of the first game (the baseline is A) and the second.
GAMES = [
    ("hard_prompt", "B", "A"),
    ("hard_prompt", "B", "A"),
    ("hard_prompt", "tie", "A"),
    ("hard_prompt", "A", "B"),
    ("creative_writing", "A", "B"),
    ("creative_writing", "A", "tie"),
    ("creative_writing", "B", "A"),
    ("creative_writing", "invalid", "A"),
]


def evaluation(**changes: object) -> EvaluationData:
    prompts, outputs, records = [], [], list[JudgementRecord]()
    for n, (category, first, second) in enumerate(GAMES):
        prompt = PromptRecord.of([{"role": "user", "content": f"Question {n}"}], category=category)
        prompts.append(prompt)
        outputs += [
            OutputRecord(prompt.id, "new", 0, "- **long**\n" * (n + 3), 9, True),
            OutputRecord(prompt.id, "base", 0, "short " * (n + 1), 9, True),
        ]
        records += [
            judged(prompt.id, "base", "new", first, strong=n == 0),
            judged(prompt.id, "new", "base", second),
        ]
    data = EvaluationData(
        prompts,
        outputs,
        records,
        baseline="base",
        arena=ArenaSettings(enabled=True),
        num_resamples=200,
    )
    return replace(data, **changes)  # type: ignore[arg-type]


def test_scores_are_those_that_the_verdicts_give_by_hand(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path, evaluation())
    # Hard: 3 + 1, 1 + 1, 0.5 + 1, 0 of 4 + 2 + 2 + 2; creative: 0, 0.5, 2 of 6; the last question does not count.
    expected = {"": (7.5 + 2.5) / 16, "hard_prompt": 7.5 / 10, "creative_writing": 2.5 / 6}
    with (tmp_path / ARENA_FILE).open() as file:
        rows = {(row["category"], row["model"]): row for row in csv.DictReader(file)}
    for category, share in expected.items():
        assert float(rows[category, "new"]["score"]) == pytest.approx(share, abs=2e-3)
        assert rows[category, "base"]["score"] == "0.500000"
    overall = json.loads(paths.json.read_text())["arena"][0]["overall"]
    (new, base) = sorted(overall["scores"], key=lambda row: row["model"], reverse=True)
    assert new["score"] == pytest.approx(expected[""], abs=2e-3)
    assert base["interval"] == {"low": 0.5, "high": 0.5}
    text = paths.markdown.read_text()
    assert "## Arena-Hard score, all prompts" in text
    assert "| new | 62.5 % |" in text
    assert "| new | 1 | 6 | 2 | 5 | 0 |" in text
    assert "1, are new's" in text
    page = Page(paths.html.read_text())
    assert page.headings[1:3] == ["Arena-Hard score", "Win rates"]
    assert page.open == []
    assert "judge: strongly prefers new" in paths.html.read_text()


def test_the_score_is_left_out_where_it_is_not_asked_for_or_cannot_be_had(tmp_path: Path) -> None:
    plain = evaluation(arena=ArenaSettings())
    assert summarise(plain).arena == []
    assert "Arena" not in write_evaluation_report(tmp_path, plain).html.read_text()
    assert not (tmp_path / ARENA_FILE).exists()
    # After an early stop there may be no question with both games.
    assert summarise(evaluation(judgements=evaluation().judgements[:1])).arena == []


def test_a_page_says_how_style_was_taken_out(tmp_path: Path) -> None:
    for centred, words in (
        (False, "where both answers have the same length"),
        (True, "at the mean style of all"),
    ):
        data = evaluation(arena=ArenaSettings(enabled=True, centred=centred))
        paths = write_evaluation_report(tmp_path, data)
        assert words in paths.html.read_text()
        assert words in paths.markdown.read_text()
