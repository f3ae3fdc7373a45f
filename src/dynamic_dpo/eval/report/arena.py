"""Arena-Hard's tables on the page, in Markdown and as CSV: scores with intervals, at equal style, by category."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import interval_bar
from dynamic_dpo.eval.report.words import percent, percent_interval
from dynamic_dpo.eval.statistics.arena.score import ArenaResult, ArenaScore, ArenaTable
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.pages.shapes import card, note, row, rows, section, table
from dynamic_dpo.pages.text import shown

LABELS = (">>", ">", "=", "<", "<<")
LABEL_NAMES = ("much better", "better", "tie", "worse", "much worse")
CSV_COLUMNS = (  # noqa: SIM905
    "judge category model baseline score score_low score_high controlled controlled_low controlled_high questions"
).split()
HEADER = ("model", "score", "interval", "at equal style", "interval", "questions")


def caveats(result: ArenaResult) -> list[str]:
    """Return what a reader of the scores must know."""
    said = [
        f"A score is the probability of being preferred to {result.overall.baseline}, by the model of Bradley and "
        f"Terry; strong verdicts count {result.strong_weight} times, both games of a question count together, and "
        "intervals are over prompts.",
        "These are scores of this judge and this baseline: a published table compares only where prompts, judge, the "
        "judge's prompt and the baseline's answers are the published ones.",
    ]
    if result.overall.style_effects:
        where = (
            "at the mean style of all questions of the table, as Arena-Hard 2.0's own summary has it: what the "
            "models together gain over the baseline by their style stays in"
            if result.centred
            else "where both answers have the same length and Markdown"
        )
        said.append(f"Equal style is {where}. Lengths are counted in characters.")
    if result.left_out:
        worst = max(result.left_out, key=lambda name: (result.left_out[name], name))
        said.append(
            f"Questions without a verdict in both orders do not count: most of them, {result.left_out[worst]:,}, are "
            f"{worst}'s."
        )
    if result.overall.unranked:
        said.append(
            f"Not compared with {result.overall.baseline}, not even through others: "
            f"{', '.join(result.overall.unranked)}."
        )
    return said


def effects_of(arena: ArenaTable) -> str:
    """Return what each feature of style gains, in words.

    >>> effects_of(ArenaTable(None, "old", "j", (), {"length": 0.512, "bold": -0.1}, 3, 0, ()))
    'length +0.51, bold -0.10 log-odds a standard deviation'
    """
    effects = ", ".join(f"{name} {effect:+.2f}" for name, effect in arena.style_effects.items())
    return f"{effects} log-odds a standard deviation" if effects else ""


def arena_lines(arena: ArenaTable) -> list[tuple[str, ...]]:
    """Return a table's lines, to stand below `HEADER`."""
    return [
        (
            score.model,
            percent(score.score),
            percent_interval(score.interval),
            "–" if score.controlled is None else percent(score.controlled),
            "–" if score.controlled_interval is None else percent_interval(score.controlled_interval),
            f"{score.num_questions:,}",
        )
        for score in arena.scores
    ]


def label_lines(result: ArenaResult) -> list[tuple[str, ...]]:
    """Return how often each model had each label."""
    return [
        (name, *(f"{counts.get(label, 0):,}" for label in LABELS)) for name, counts in result.labels.items()
    ]


def arena_section(results: Sequence[ArenaResult]) -> Markup:
    """Return the section of the page, or nothing without a result."""
    if not results:
        return Markup()
    cards = []
    for result in results:
        by = f", by {result.overall.judge}" if len(results) > 1 else ""
        parts = [("All prompts", result.overall), *result.by_category.items()]
        for heading, arena in parts:
            effects = effects_of(arena)
            cards.append(
                card(
                    rows(
                        *(_row(score, arena) for score in arena.scores if score.model != arena.baseline),
                        scale=("0 %", "50 %", "100 %"),
                    ),
                    *([note(effects + ".", lead="What style gains:")] if effects else []),
                    heading=heading + by,
                )
            )
        cards.append(card(table(("model", *LABEL_NAMES), label_lines(result)), *map(note, caveats(result))))
    return section(
        "arena-hard",
        "Arena-Hard score",
        "The probability of being preferred to the baseline; hollow points are at equal length and Markdown.",
        *cards,
    )


def _row(score: ArenaScore, arena: ArenaTable) -> Markup:
    second, rest = None, ""
    if score.controlled is not None and score.controlled_interval is not None:
        second = (score.controlled, score.controlled_interval)
        rest = f"at equal style {percent(score.controlled)} ({percent_interval(score.controlled_interval)})"
    return row(
        score.model,
        f"against {arena.baseline}, {score.num_questions:,} questions",
        interval_bar(
            score.score,
            score.interval,
            second=second,
            label=f"{score.model} against {arena.baseline}: {percent(score.score)}",
        ),
        percent(score.score),
        f"({percent_interval(score.interval)})",
        rest=rest,
    )


def arena_csv(results: Sequence[ArenaResult]) -> str:
    """Return one row for every score, overall and by category; what is not known is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        for arena in (result.overall, *result.by_category.values()):
            for score in arena.scores:
                named = (arena.judge, arena.category or "", score.model, arena.baseline)
                writer.writerow(
                    [
                        *map(shown, named),
                        *_ends(score.score, score.interval),
                        *_ends(score.controlled, score.controlled_interval),
                        score.num_questions,
                    ]
                )
    return buffer.getvalue()


def _ends(value: float | None, interval: Interval | None) -> list[str]:
    if value is None or interval is None:
        return ["", "", ""]
    return [f"{number:.6f}" for number in (value, *interval)]
