"""AlpacaEval 2's numbers in a report: the same on the page, in Markdown, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.eval.report.alpaca import alpaca_caveats
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.summary import summarise
from dynamic_dpo.eval.report.write import ALPACA_FILE, write_evaluation_report
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import Difficulties
from dynamic_dpo.eval.statistics.alpaca_eval.numbers import alpaca_eval_table
from helpers_judgements import judged
from helpers_pages import Page

NUM = 40
RNG = np.random.default_rng(5)
PROMPTS = [PromptRecord.of([{"role": "user", "content": f"Question {n}"}]) for n in range(NUM)]


def evaluation(**changes: object) -> EvaluationData:
    rng = np.random.default_rng(5)
    names = ("base", "new", "|odd")
    outputs = [
        OutputRecord(prompt.id, name, 0, "x" * int(rng.integers(20, 200)), 9, True)
        for prompt in PROMPTS
        for name in names
    ]
    records = [
        judged(prompt.id, "base", name, "B" if weight > 0.5 else "A", prob_first=1 - weight)
        for name in names[1:]
        for prompt, weight in zip(PROMPTS, rng.uniform(0.1, 1.0, size=NUM).tolist(), strict=True)
    ]
    data = EvaluationData(PROMPTS, outputs, records, baseline="base", alpaca=True, num_resamples=200)
    return replace(data, **changes)  # type: ignore[arg-type]


def test_page_markdown_csv_and_json_say_the_same(tmp_path: Path) -> None:
    data = evaluation()
    paths = write_evaluation_report(tmp_path, data)
    table = alpaca_eval_table(data.judgements, data.outputs, "base", judge="judge")
    with (tmp_path / ALPACA_FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (stored,) = json.loads(paths.json.read_text())["alpaca"]
    text, page = paths.markdown.read_text(), Page(paths.html)
    assert "## AlpacaEval 2\n" in text
    assert len(rows) == len(stored["rows"]) == len(table.models) == 2
    for one, row, held in zip(table.models, rows, stored["rows"], strict=True):
        assert one.controlled is not None
        assert (row["model"], held["model"]) == (one.model, one.model)
        assert held["length_controlled"] == one.controlled.rate
        assert held["win_rate_error"] == one.weighted.standard_error
        assert float(row["win_rate"]) == pytest.approx(one.weighted.rate, abs=1e-6)
        assert float(row["discrete_win_rate"]) == pytest.approx(one.discrete, abs=1e-6)
        shown = f"{100 * one.weighted.rate:.2f} % ± {100 * one.weighted.standard_error:.2f}"
        assert shown in text
        assert shown in page.text
    assert "estimated from the 2 models of this evaluation. With so few" in text


def test_nothing_is_shown_that_was_not_asked_for(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path, evaluation(alpaca=False))
    assert "AlpacaEval 2" not in paths.markdown.read_text() + paths.html.read_text()
    assert not (tmp_path / ALPACA_FILE).exists()
    assert summarise(evaluation(judgements=[])).alpaca == []


def test_what_the_numbers_rest_on_is_said() -> None:
    known = Difficulties({prompt.id: 0.0 for prompt in PROMPTS[:30]}, length_effect=1.0)
    verdicts = [replace(record, prob_first=None) for record in evaluation().judgements]
    (result,) = summarise(evaluation(difficulties=known, judgements=verdicts)).alpaca
    said = " ".join(alpaca_caveats(result))
    assert "estimated" not in said
    assert "The judge gave no probabilities" in said
    assert "10 at most of a model" in said
    (result,) = summarise(evaluation(outputs=[])).alpaca
    assert [row.length_controlled for row in result.rows] == [None, None]
    assert "estimated" not in " ".join(alpaca_caveats(result))
