"""AlpacaEval 2's numbers on the page, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields

from markupsafe import Markup

from dynamic_dpo.eval.statistics.alpaca_eval.result import AlpacaEvalResult, AlpacaEvalRow
from dynamic_dpo.pages.shapes import card, note, section, table
from dynamic_dpo.pages.text import shown

ALPACA_HEADER = (
    "model", "length-controlled", "weighted win rate", "discrete win rate", "prompts", "mean length"
)  # fmt: skip
FEW_MODELS = 10


def alpaca_caveats(result: AlpacaEvalResult) -> list[str]:
    """Return what a reader of the numbers must know."""
    said = [
        f"Against {result.baseline}; ± is one standard error over prompts. How uncertain the regression behind the "
        "length-controlled win rate is, is not in its error.",
        "They are AlpacaEval's numbers only where prompts, judge, the judge's prompt and the baseline's outputs are "
        "AlpacaEval's.",
    ]
    controlled = sum(row.length_controlled is not None for row in result.rows)
    if result.are_estimated and controlled:
        few = (
            " With so few the length-controlled win rate can be several points off that of a published table: name a "
            "file in statistics.alpaca_eval.difficulties."
            if controlled < FEW_MODELS
            else ""
        )
        models = "the one model" if controlled == 1 else f"the {controlled} models"
        said.append(f"Difficulties of the instructions were estimated from {models} of this evaluation.{few}")
    if not result.has_weights:
        said.append("The judge gave no probabilities: every verdict counts as a sure one.")
    left_out = max((row.num_left_out for row in result.rows), default=0)
    if left_out:
        said.append(
            f"Length control leaves out questions without both texts or without a difficulty, {left_out:,} at most "
            "of a model."
        )
    return said


def alpaca_lines(result: AlpacaEvalResult) -> list[tuple[str, ...]]:
    """Return a table's lines, to stand below `ALPACA_HEADER`."""
    return [
        (
            row.model,
            _with_error(row.length_controlled, row.length_controlled_error),
            _with_error(row.win_rate, row.win_rate_error),
            _with_error(row.discrete_win_rate, None),
            f"{row.num_prompts:,}",
            "–" if row.mean_length is None else f"{row.mean_length:,.0f}",
        )
        for row in result.rows
    ]


def alpaca_section(results: Sequence[AlpacaEvalResult]) -> Markup:
    """Return the section of the page, or nothing without a result."""
    if not results:
        return Markup()
    cards = []
    for result in results:
        heading = {"heading": f"By {result.judge}"} if len(results) > 1 else {}
        cards.append(
            card(table(ALPACA_HEADER, alpaca_lines(result)), *map(note, alpaca_caveats(result)), **heading)
        )
    return section(
        "alpaca-eval",
        "AlpacaEval 2",
        "How surely the judge preferred a model, on average, and what that would be at equal lengths.",
        *cards,
    )


def alpaca_csv(results: Sequence[AlpacaEvalResult]) -> str:
    """Return one row for every model and judge; what is not known is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["judge", "baseline", *(item.name for item in fields(AlpacaEvalRow))])
    for result in results:
        for row in result.rows:
            values = (f"{value:.6f}" if isinstance(value, float) else value for value in astuple(row)[1:])
            writer.writerow([shown(result.judge), shown(result.baseline), shown(row.model), *values])
    return buffer.getvalue()


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" + ("" if error is None else f" ± {100 * error:.2f}")
