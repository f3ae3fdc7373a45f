"""A leaderboard in the forms in which it is used: Markdown, LaTeX for papers, CSV, and a page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dynamic_dpo.eval.leaderboard.board import METRICS, Board, Column
from dynamic_dpo.eval.leaderboard.results import ModelResult, Value
from dynamic_dpo.pages.shapes import card, findings, page, section, table
from dynamic_dpo.pages.text import shown
from dynamic_dpo.utils.files import write_text

CSV_COLUMNS = (
    *("evaluation", "prompts", "num_prompts", "baseline", "judge"),
    *("model", "metric", "value", "low", "high"),
)
# For a number that nobody has.
_MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_IN_LATEX = re.compile("|".join(map(re.escape, _LATEX)))
_IN_MARKDOWN = re.compile(r"([\\|`*_<>\[\]])")


class LeaderboardPaths(NamedTuple):
    """The files of a leaderboard."""

    html: Path
    markdown: Path
    latex: Path
    csv: Path


def write_leaderboard(folder: str | Path, board: Board, results: Sequence[ModelResult]) -> LeaderboardPaths:
    """Write ``leaderboard.html``, ``.md``, ``.tex`` and ``.csv``.

    Args:
        folder: Where to; made if missing. Files of an earlier one are replaced.
        board: The table.
        results: What it was made of, for the CSV file, which has a row for each number.
    """
    target = Path(folder) / "leaderboard"
    return LeaderboardPaths(
        write_text(target.with_suffix(".html"), html(board)),
        write_text(target.with_suffix(".md"), markdown(board)),
        write_text(target.with_suffix(".tex"), latex(board)),
        write_text(target.with_suffix(".csv"), csv_rows(results)),
    )


def number(value: Value | None, metric: str) -> str:
    """Write a number, shares in per cent.

    Example:
        >>> number(Value(0.6249), "win_rate"), number(Value(3.456), "kl"), number(None, "kl")
        ('62.5', '3.46', '–')
    """
    return _MISSING if value is None else _written(value.value, metric)


def interval(value: Value | None, metric: str) -> str:
    """Write a number's interval; nothing where there is none.

    Example:
        >>> interval(Value(0.6, 0.5, 0.75), "win_rate"), interval(Value(0.6), "win_rate")
        ('[50.0, 75.0]', '')
    """
    if value is None or value.low is None or value.high is None:
        return ""
    return f"[{_written(value.low, metric)}, {_written(value.high, metric)}]"


def header(column: Column) -> str:
    """Return a column's header with its unit.

    Example:
        >>> header(Column("win_rate", None)), header(Column("tokens", None))
        ('win rate, %', 'tokens')
    """
    return column.header + (", %" if METRICS[column.metric].unit == "share" else "")


def markdown(board: Board) -> str:
    """Return the table in Markdown, the best of a column in bold, and what its columns are."""
    lines = [
        "| model | " + " | ".join(_markdown_text(header(column)) for column in board.columns) + " |",
        "| --- |" + " ---: |" * len(board.columns),
    ]
    for name, numbers in board.lines:
        cells = _cells(board, numbers, lambda text: f"**{text}**")
        lines.append(f"| {_markdown_text(name)} | " + " | ".join(cells) + " |")
    notes = [_markdown_text(sentence) for sentence in sentences(board)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def latex(board: Board) -> str:
    r"""Return the table as a ``tabular`` for the package booktabs, ready for ``\input``."""
    lines = [
        f"% {_one_line(' '.join(sentences(board)))}",
        rf"\begin{{tabular}}{{l{'r' * len(board.columns)}}}",
        r"\toprule",
        " & ".join(["model", *(_latex_text(header(column)) for column in board.columns)]) + r" \\",
        r"\midrule",
    ]
    for name, numbers in board.lines:
        cells = _cells(
            board, numbers, lambda text: rf"\textbf{{{text}}}", small=lambda text: rf"{{\scriptsize {text}}}"
        )
        lines.append(
            " & ".join([_latex_text(name), *(cell.replace(_MISSING, "--") for cell in cells)]) + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def html(board: Board) -> str:
    """Return the table as a page that stands alone."""
    lines = [
        [shown(name, most=200), *_cells(board, numbers, lambda text: f"{text} ★")]
        for name, numbers in board.lines
    ]
    shape = table(["model", *(shown(header(column), most=200) for column in board.columns)], lines)
    lead = (
        f"In the order of {header(board.ranked_by)}; ★ marks the best of a column, brackets hold intervals."
    )
    return page(
        "Leaderboard",
        f"{len(board.lines)} models, {len(board.tasks)} tasks"
        if len(board.tasks) > 1
        else f"{len(board.lines)} models",
        [
            section("table", "The table", lead, card(shape)),
            section(
                "about",
                "What it is made of",
                "",
                findings([shown(text, most=2000) for text in sentences(board)]),
            ),
        ],
    )


def csv_rows(results: Sequence[ModelResult]) -> str:
    """Return a row for each number, as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        task = result.task
        for metric, value in result.values.items():
            ends = ["" if end is None else f"{end:.6f}" for end in (value.low, value.high)]
            named = [
                result.evaluation,
                task.prompts,
                task.num_prompts,
                task.baseline or "",
                task.judge,
                result.model,
            ]
            writer.writerow([*(shown(str(text)) for text in named), metric, f"{value.value:.6f}", *ends])
    return buffer.getvalue()


def sentences(board: Board) -> list[str]:
    """Return what the tasks and the columns are, a sentence each."""
    tasks = [
        f"{task.label}: {task.num_prompts} prompts of {task.prompts}"
        f"{'' if task.baseline is None else f', against {task.baseline}'}, judged by {task.judge}."
        for task in board.tasks
    ]
    metrics = dict.fromkeys(column.metric for column in board.columns)
    return [*tasks, *(f"{METRICS[name].header}: {METRICS[name].meaning}." for name in metrics)]


def _cells(
    board: Board,
    numbers: Sequence[Value | None],
    emphasise: Callable[[str], str],
    *,
    small: Callable[[str], str] = str,
) -> list[str]:
    cells = []
    for column, value in zip(board.columns, numbers, strict=True):
        text = number(value, column.metric)
        best = board.best(column)
        if value is not None and best is not None and value.value == best:
            text = emphasise(text)
        ends = interval(value, column.metric)
        cells.append(f"{text} {small(ends)}" if ends else text)
    return cells


def _written(value: float, metric: str) -> str:
    kind = METRICS[metric]
    return f"{100 * value if kind.unit == 'share' else value:.{kind.digits}f}"


def _one_line(text: str) -> str:
    return " ".join(shown(text, most=2000).split())


def _markdown_text(text: str) -> str:
    return _IN_MARKDOWN.sub(r"\\\1", _one_line(text))


def _latex_text(text: str) -> str:
    return _IN_LATEX.sub(lambda found: _LATEX[found[0]], _one_line(text))
