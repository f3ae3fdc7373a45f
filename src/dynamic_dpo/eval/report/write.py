"""Writes an evaluation's report: one page to look at, Markdown to read, CSV and JSON to compute with.

Equal input gives equal files, byte for byte. What the numbers mean is told in docs/evaluation.md.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.report.alpaca import alpaca_csv
from dynamic_dpo.eval.report.arena import arena_csv
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.html import html_page
from dynamic_dpo.eval.report.markdown import markdown
from dynamic_dpo.eval.report.summary import EvaluationSummary, summarise
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.statistics.win_rate import WinRate
from dynamic_dpo.pages.text import shown
from dynamic_dpo.utils.files import write_json, write_text

ARENA_FILE = "arena_hard.csv"
ALPACA_FILE = "alpaca_eval.csv"
FORMAT_VERSION = 2
CSV_COLUMNS = (  # noqa: SIM905
    "judge model baseline category prompts wins losses ties invalid win_rate win_rate_low win_rate_high decisive "
    "decisive_low decisive_high length_controlled length_controlled_low length_controlled_high p p_holm "
    "prompts_needed"
).split()


class ReportPaths(NamedTuple):
    """The files of a report.

    Attributes:
        html: One page that needs nothing else.
        markdown: The same for a terminal or a repository, samples left out.
        csv: One row per win rate.
        json: Every number.
    """

    html: Path
    markdown: Path
    csv: Path
    json: Path


def write_evaluation_report(folder: str | Path, data: EvaluationData) -> ReportPaths:
    """Write ``report.html``, ``report.md``, ``results.csv`` and ``results.json``.

    Where Arena-Hard's score is asked for, its tables are in ``arena_hard.csv`` too, and AlpacaEval 2's numbers in
    ``alpaca_eval.csv``.

    Args:
        folder: Where to; made if missing. Files of an earlier report are replaced, each whole or not at all.
        data: What was evaluated. Missing parts are left out of the report.

    Returns:
        The paths of the files.

    Raises:
        DataError: If ``folder`` is a file, a judgement cannot be read, or the baseline is no model of these
            records.
        ConfigError: If the confidence or the number of resamples is impossible.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise DataError(f"the report cannot be written to {target}: it is a file; name a folder")
    summary = summarise(data)
    if summary.arena:
        write_text(target / ARENA_FILE, arena_csv(summary.arena))
    if summary.alpaca:
        write_text(target / ALPACA_FILE, alpaca_csv(summary.alpaca))
    return ReportPaths(
        html=write_text(target / "report.html", html_page(data, summary)),
        markdown=write_text(target / "report.md", markdown(data, summary)),
        csv=write_text(target / "results.csv", csv_rows(summary)),
        json=write_json(target / "results.json", report_numbers(data, summary)),
    )


def csv_rows(summary: EvaluationSummary) -> str:
    """Return one row per win rate, overall and by category, as CSV; what is not known is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for pair in summary.pairs:
        at_equal_length = ["", "", ""]
        if pair.controlled is not None:
            at_equal_length = _with_ends(pair.controlled.rate, pair.controlled.interval)
        writer.writerow(
            [*_counts(pair.overall, ""), *at_equal_length, *_test(pair.overall, repr(pair.p_holm))]
        )
        for name, part in pair.by_category.items():
            writer.writerow([*_counts(part, name), *["", "", ""], *_test(part, "")])
    return buffer.getvalue()


def _counts(result: WinRate, category: str) -> list[object]:
    counts = result.counts
    return [
        *(shown(text) for text in (result.judge, result.model, result.baseline, category)),
        result.num_prompts,
        *(counts.wins, counts.losses, counts.ties, counts.invalid),
        *_with_ends(result.rate, result.interval),
        *_with_ends(result.decisive, result.decisive_interval),
    ]


def _test(result: WinRate, p_holm: str) -> list[object]:
    return [repr(result.p_value), p_holm, "" if result.num_needed is None else result.num_needed]


def _with_ends(value: float, interval: Interval) -> list[str]:
    if math.isnan(value):
        return ["", "", ""]
    return [f"{number:.6f}" for number in (value, *interval)]


def report_numbers(data: EvaluationData, summary: EvaluationSummary) -> dict[str, Any]:
    """Return every number of a report as JSON types; what is not known is ``None``."""
    numbers: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "title": data.title,
        "created": data.created,
        "baseline": data.baseline,
        "num_prompts": len(data.prompts),
        "num_questions": data.num_questions,
        "stopped": data.stopped,
        "statistics": {
            "confidence": data.confidence,
            "num_resamples": data.num_resamples,
            "seed": data.seed,
        },
        "preference": plain(dict(data.preference)),
        "provenance": plain(dict(data.provenance)),
    }
    return numbers | plain(summary)  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """Return records and numbers as JSON types."""
    if isinstance(value, Interval):
        return {"low": value.low, "high": value.high}
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
