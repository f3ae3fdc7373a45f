"""The report of graded conversations: a page with table, radar and samples, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dynamic_dpo.eval.judges.turns.grades import HIGHEST, LOWEST
from dynamic_dpo.eval.prompts.turns import references_of, turns_of
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.eval.report.figures import interval_bar
from dynamic_dpo.eval.report.markdown import line_of, markdown_table, words_of
from dynamic_dpo.eval.report.write import ReportPaths, plain
from dynamic_dpo.eval.statistics.grades import GradeMean
from dynamic_dpo.eval.turns.data import GradesData
from dynamic_dpo.eval.turns.radar import FEWEST_AXES, KINDS, radar
from dynamic_dpo.pages.shapes import (
    Chip,
    Output,
    Remark,
    alarm,
    card,
    legend,
    made_with,
    page,
    row,
    rows,
    section,
    side_by_side,
    table,
)
from dynamic_dpo.pages.text import shown
from dynamic_dpo.utils.files import write_json, write_text
from dynamic_dpo.utils.hashing import content_hash

FORMAT_VERSION = 1
CSV_COLUMNS = ("judge", "model", "what", "grade", "grade_low", "grade_high", "grades")
LEAD = (
    "Mean grade of the answers to all turns, from 1 to 10, with intervals over prompts. Answers without a readable "
    "grade are left out."
)


def write_grades_report(folder: str | Path, data: GradesData) -> ReportPaths:
    """Write ``report.html``, ``report.md``, ``results.csv`` and ``results.json``; equal input gives equal files."""
    target = Path(folder)
    return ReportPaths(
        html=write_text(target / "report.html", _page(data)),
        markdown=write_text(target / "report.md", _markdown(data)),
        csv=write_text(target / "results.csv", _csv(data)),
        json=write_json(target / "results.json", _numbers(data)),
    )


def grade(value: float) -> str:
    """Write a grade.

    >>> grade(7.256), grade(float("nan"))
    ('7.26', '–')
    """
    return "–" if math.isnan(value) else f"{value:.2f}"


def _ends(mean: GradeMean, sign: str = "") -> str:
    low, high = mean.interval
    return "–" if math.isnan(low) else f"{low:{sign}.2f} to {high:{sign}.2f}"


def _difference(mean: GradeMean | None) -> tuple[str, str]:
    if mean is None or math.isnan(mean.mean):
        return "–", "–"
    return f"{mean.mean:+.2f}", _ends(mean, "+")


def _header(data: GradesData) -> tuple[str, ...]:
    num_turns = max((len(model.by_turn) for model in data.models), default=0)
    return (
        "model",
        "grade",
        f"{100 * data.confidence:g} % interval",
        *(f"turn {turn + 1}" for turn in range(num_turns)),
        *((f"against {data.baseline}", "interval") if data.baseline else ()),
        "grades",
        "without grade",
    )


def _lines(data: GradesData) -> list[tuple[str, ...]]:
    num_turns = max((len(model.by_turn) for model in data.models), default=0)
    return [
        (
            model.model,
            grade(model.overall.mean),
            _ends(model.overall),
            *(grade(turn.mean) for turn in model.by_turn),
            *["–"] * (num_turns - len(model.by_turn)),
            *(_difference(model.difference) if data.baseline else ()),
            f"{model.overall.num_grades:,}",
            f"{model.num_invalid:,}",
        )
        for model in data.models
    ]


def _category_lines(data: GradesData) -> list[tuple[str, ...]]:
    return [
        (model.model, *(grade(model.by_category[name].mean) for name in data.categories))
        for model in data.models
    ]


# ---- the page ----


def _page(data: GradesData) -> str:
    facts = [f"{len(data.prompts):,} prompts", f"{len(data.models)} models", f"graded by {data.judge}"]
    sections = [
        alarm("Read this first", data.alarms) if data.alarms else Markup(),
        _grades(data),
        _categories(data),
        _samples(data),
        made_with(dict(data.provenance)),
    ]
    return page(data.title, " · ".join([*facts, *([data.created] if data.created else [])]), sections)


def _grades(data: GradesData) -> Markup:
    if not data.models:
        return Markup()
    lines = [
        row(
            model.model,
            f"{model.overall.num_grades:,} grades",
            interval_bar(
                model.overall.mean,
                model.overall.interval,
                scale=(LOWEST, HIGHEST),
                reference=None,
                label=f"{model.model}: {grade(model.overall.mean)}",
            ),
            grade(model.overall.mean),
            f"({_ends(model.overall)})",
        )
        for model in data.models
    ]
    return section(
        "grades",
        "Grades",
        LEAD,
        card(rows(*lines, scale=("1", "10"))),
        card(table(_header(data), _lines(data))),
    )


def _categories(data: GradesData) -> Markup:
    if len(data.categories) < 2:
        return Markup()
    picture = Markup()
    if len(data.categories) >= FEWEST_AXES:
        by_model = {
            model.model: [model.by_category[name].mean for name in data.categories] for model in data.models
        }
        named = [(KINDS[min(number, len(KINDS) - 1)], name) for number, name in enumerate(by_model)]
        label = "Mean grades by category: " + "; ".join(
            f"{name} " + ", ".join(grade(value) for value in values) for name, values in by_model.items()
        )
        picture = card(radar(by_model, data.categories, label=label), legend(named))
    return section(
        "categories",
        "By category",
        "The more categories one looks at, the likelier one of them stands out by chance.",
        picture,
        card(table(("model", *data.categories), _category_lines(data))),
    )


def _samples(data: GradesData) -> Markup:
    drawn = sorted(data.prompts, key=lambda prompt: content_hash([data.seed, prompt.id]))[: data.num_shown]
    if not drawn:
        return Markup()
    return section(
        "samples",
        "Side by side",
        f"{len(drawn)} of {len(data.prompts):,} prompts, drawn at random.",
        *(_prompt(data, prompt) for prompt in drawn),
    )


def _prompt(data: GradesData, prompt: PromptRecord) -> Markup:
    turns = turns_of(prompt)
    asked = [(message["role"], message["content"]) for message in prompt.messages]
    asked += [("user", turn) for turn in turns[1:]]
    outputs, remarks = [], []
    for model, said in data.answers.items():
        answers = said.get(prompt.id, [])
        text = "\n\n".join(f"Turn {number}: {answer.text}" for number, answer in enumerate(answers, start=1))
        flags = dict.fromkeys(flag for answer in answers for flag in answer.flags)
        outputs.append(Output(model, text, [Chip(flag.replace("_", " "), "bad") for flag in flags]))
    for record in sorted(data.grades, key=lambda record: (record.model, record.turn)):
        if record.id == prompt.id:
            found = "no readable grade" if record.grade is None else f"{record.grade:g}"
            remarks.append(Remark(f"{record.model}, turn {record.turn + 1}: {found}", text=record.reason))
    references = references_of(prompt, len(turns))
    if references:
        right = "\n\n".join(f"Turn {number}: {text}" for number, text in enumerate(references, start=1))
        outputs.append(Output("reference", right))
    chips = [] if prompt.category is None else [Chip(prompt.category)]
    return side_by_side(f"prompt {prompt.id[:12]}", asked, outputs, chips=chips, remarks=remarks)


# ---- files to read and to compute with ----


def _markdown(data: GradesData) -> str:
    blocks = [f"# {words_of(data.title)}\n", *([f"{line_of(data.created)}\n"] if data.created else [])]
    blocks += [f"> **Read this first.** {words_of(said)}\n" for said in data.alarms]
    if data.models:
        blocks += [f"## Grades, by {words_of(data.judge)}\n", markdown_table(_header(data), _lines(data))]
        blocks += [f"{LEAD}\n"]
    if len(data.categories) > 1:
        blocks += ["## By category\n", markdown_table(("model", *data.categories), _category_lines(data))]
    for heading, values in data.provenance.items():
        blocks += [f"## Made with: {words_of(heading)}\n", markdown_table(("key", "value"), values.items())]
    return "\n".join(blocks).rstrip() + "\n"


def _csv(data: GradesData) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for model in data.models:
        for what, mean in (
            ("overall", model.overall),
            *((f"turn {turn + 1}", mean) for turn, mean in enumerate(model.by_turn)),
            *((f"category {name}", mean) for name, mean in model.by_category.items()),
            *([] if model.difference is None else [(f"difference to {data.baseline}", model.difference)]),
        ):
            numbers = _known((mean.mean, *mean.interval))
            writer.writerow([*map(shown, (data.judge, model.model, what)), *numbers, mean.num_grades])
    return buffer.getvalue()


def _known(values: Iterable[float]) -> Sequence[str]:
    return ["" if math.isnan(value) else f"{value:.6f}" for value in values]


def _numbers(data: GradesData) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "title": data.title,
        "created": data.created,
        "baseline": data.baseline,
        "judge": data.judge,
        "num_prompts": len(data.prompts),
        "alarms": list(data.alarms),
        "statistics": {
            "confidence": data.confidence,
            "num_resamples": data.num_resamples,
            "seed": data.seed,
        },
        "models": [plain(model) for model in data.models],
        "provenance": plain(dict(data.provenance)),
    }
