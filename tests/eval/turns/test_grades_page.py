"""The page of grades: nothing that anybody wrote can act in it, and equal input gives equal files."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from dynamic_dpo.eval.records import GradeRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.statistics.grades import model_grades
from dynamic_dpo.eval.turns.data import GradesData
from dynamic_dpo.eval.turns.page import CSV_COLUMNS, write_grades_report
from helpers_pages import Page
from hostile_texts import HARMLESS, HOSTILE, named


def written_everywhere(text: str) -> GradesData:
    # The ids are given: the order of prompts on the page follows them, and content would change them.
    prompts = [
        PromptRecord(
            f"p{number}",
            [{"role": "user", "content": text}],
            category=f"{text} {number}",
            meta={"turns": [text, text], "references": [text, text]},
        )
        for number in range(3)
    ]
    models = [f"{text} {number}" for number in range(2)]
    grades = [
        GradeRecord(f"{number}{prompt.id}{turn}", prompt.id, turn, text, model, 5.0 + number, reason=text)
        for number, model in enumerate(models)
        for prompt in prompts
        for turn in range(2)
    ]
    return GradesData(
        prompts=prompts,
        answers={
            model: {
                prompt.id: [OutputRecord(prompt.id, model, 0, text, 1, True, [text])] * 2
                for prompt in prompts
            }
            for model in models
        },
        grades=grades,
        models=model_grades(
            grades, categories={p.id: p.category for p in prompts}, baseline=models[0], num_resamples=100
        ),
        judge=text,
        baseline=models[0],
        title=text,
        created=text,
        alarms=[text],
        provenance={text: {text: text}},
    )


class Written(NamedTuple):
    html: str
    markdown: str
    csv: str
    json: str


def write(data: GradesData, folder: Path) -> Written:
    return Written(*(path.read_text(encoding="utf-8") for path in write_grades_report(folder, data)))


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(written_everywhere(HARMLESS), tmp_path_factory.mktemp("harmless"))


@pytest.mark.parametrize("text", HOSTILE, ids=named)
def test_whatever_anybody_wrote_is_text(text: str, harmless: Written, tmp_path: Path) -> None:
    hostile = write(written_everywhere(text), tmp_path)
    assert Page(hostile.html).structure == Page(harmless.html).structure
    for sign in "<>\"'":
        assert hostile.html.count(sign) == harmless.html.count(sign), sign
    assert hostile.markdown.count("\n") == harmless.markdown.count("\n")
    rows = list(csv.reader(io.StringIO(hostile.csv, newline="")))
    assert [len(row) for row in rows] == [len(CSV_COLUMNS)] * len(harmless.csv.splitlines())
    assert json.loads(hostile.json).keys() == json.loads(harmless.json).keys()
    for part in hostile:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", part)


def test_equal_input_gives_equal_files_whatever_its_order(tmp_path: Path) -> None:
    data = written_everywhere(HARMLESS)
    turned = replace(data, prompts=data.prompts[::-1], grades=data.grades[::-1])
    assert write(data, tmp_path / "a") == write(turned, tmp_path / "b")


def test_an_evaluation_without_a_grade_gives_a_page_that_says_so(tmp_path: Path) -> None:
    data = replace(
        written_everywhere(HARMLESS), grades=[], models=[], alarms=["12 answers have no grade yet."]
    )
    found = write(data, tmp_path)
    assert "12 answers have no grade yet" in found.html
    assert Page(found.html).headings == ["Read this first", "Side by side"]
