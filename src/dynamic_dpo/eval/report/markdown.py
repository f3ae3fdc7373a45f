"""An evaluation report as Markdown, for a terminal or a repository, and as CSV, for other programs."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.summary import EvaluationSummary, PairSummary
from dynamic_dpo.eval.report.words import finding_sentences, p_value, percent, percent_interval
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.statistics.win_rate import WinRate
from dynamic_dpo.pages.text import shown

CSV_COLUMNS = (  # noqa: SIM905
    "judge model baseline category prompts wins losses ties invalid win_rate win_rate_low win_rate_high decisive "
    "decisive_low decisive_high length_controlled length_controlled_low length_controlled_high sign_p sign_p_holm"
).split()


def markdown(data: EvaluationData, summary: EvaluationSummary) -> str:
    """Return the report as Markdown, samples left out."""
    parts = [f"# {_words(data.title)}\n"]
    if data.created:
        parts.append(f"{_line(data.created)}\n")
    parts += [f"> **Read this first.** {_words(alarm)}\n" for alarm in summary.alarms]
    if summary.pairs:
        parts.append("## Win rates\n")
        parts += [f"- {_line(sentence)}" for sentence in finding_sentences(summary.pairs)]
        parts.append("\n" + _win_rates(summary.pairs, data.confidence))
    categories = [(pair, pair.by_category) for pair in summary.pairs if pair.by_category]
    if categories:
        rows = [
            (pair.overall.model, pair.overall.baseline, name, part.num_prompts, *_rate_and_interval(part))
            for pair, parts_of_pair in categories
            for name, part in parts_of_pair.items()
        ]
        parts.append("## By category\n")
        parts.append(_table(("model", "against", "category", "prompts", "win rate", "interval"), rows))
    parts += _lengths(summary)
    if summary.judges:
        parts.append("## Judges\n")
        header = (
            "judge",
            "judgements",
            "invalid",
            "chose the first",
            "same in both orders",
            "flipped",
            "tokens",
            "cost",
        )
        parts.append(
            _table(
                header,
                [
                    (
                        judge.name,
                        f"{judge.num_judgements:,}",
                        judge.num_invalid,
                        percent(judge.bias.first_share),
                        percent(judge.bias.consistency),
                        percent(judge.bias.flip_rate),
                        f"{judge.prompt_tokens + judge.completion_tokens:,}",
                        f"{judge.cost:.4g}",
                    )
                    for judge in summary.judges
                ],
            )
        )
    for judge in summary.judges:
        if judge.strengths is not None:
            parts.append(f"## Strengths (Bradley-Terry), by {_words(judge.name)}\n")
            strengths = [
                (
                    row.name,
                    f"{row.strength:+.2f}",
                    f"{row.interval.low:+.2f} to {row.interval.high:+.2f}",
                    row.group,
                )
                for row in judge.strengths.models
            ]
            parts.append(_table(("model", "log-odds", "interval", "group"), strengths))
            parts += [f"{_line(note)}\n" for note in judge.strengths.notes]
    parts += _further(data, summary)
    for heading, values in data.provenance.items():
        parts.append(f"## Made with: {_words(heading)}\n")
        parts.append(_table(("key", "value"), values.items()))
    return "\n".join(parts).rstrip() + "\n"


def csv_rows(summary: EvaluationSummary) -> str:
    """Return one row per win rate, overall and by category, as CSV; what is not known is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for pair in summary.pairs:
        controlled = pair.controlled
        own = [*_ends(math.nan, None), "", ""]
        if controlled is not None:
            own[:3] = _ends(controlled.rate, controlled.interval)
        own[3:] = [repr(pair.test.p_value), repr(pair.p_holm)]
        writer.writerow([*_csv_counts(pair.overall, ""), *own])
        for name, part in pair.by_category.items():
            writer.writerow([*_csv_counts(part, name), *_ends(math.nan, None), "", ""])
    return buffer.getvalue()


def _csv_counts(result: WinRate, category: str) -> list[object]:
    counts = result.counts
    return [
        *(shown(text) for text in (result.judge, result.model, result.baseline, category)),
        result.num_prompts,
        *(counts.wins, counts.losses, counts.ties, counts.invalid),
        *_ends(result.rate, result.interval),
        *_ends(result.decisive, result.decisive_interval),
    ]


def _ends(value: float, interval: Interval | None) -> list[str]:
    if interval is None or math.isnan(value):
        return ["", "", ""]
    return [f"{number:.6f}" for number in (value, *interval)]


def _win_rates(pairs: Sequence[PairSummary], confidence: float) -> str:
    header = (
        "judge", "model", "against", "prompts", "W", "L", "T", "invalid", "win rate",
        f"{100 * confidence:g} % interval", "W/(W+L)", "at equal length", "p (Holm)",
    )  # fmt: skip
    return _table(
        header,
        [
            (
                pair.overall.judge,
                pair.overall.model,
                pair.overall.baseline,
                f"{pair.overall.num_prompts:,}",
                pair.overall.counts.wins,
                pair.overall.counts.losses,
                pair.overall.counts.ties,
                pair.overall.counts.invalid,
                *_rate_and_interval(pair.overall),
                f"{percent(pair.overall.decisive)} ({percent_interval(pair.overall.decisive_interval)})",
                "–"
                if pair.controlled is None
                else f"{percent(pair.controlled.rate)} ({percent_interval(pair.controlled.interval)})",
                p_value(pair.p_holm),
            )
            for pair in pairs
        ],
    )


def _rate_and_interval(result: WinRate) -> tuple[str, str]:
    return percent(result.rate), percent_interval(result.interval)


def _lengths(summary: EvaluationSummary) -> list[str]:
    parts: list[str] = []
    if summary.models:
        parts.append("## Outputs\n")
        rows = [
            (
                model.name,
                f"{model.num_outputs:,}",
                f"{model.mean_length:,.0f}",
                "–" if model.mean_tokens is None else f"{model.mean_tokens:,.0f}",
                percent(model.num_unfinished / model.num_outputs),
                ", ".join(f"{fault} {number}" for fault, number in model.faults.items()) or "none",
            )
            for model in summary.models
        ]
        header = ("model", "outputs", "mean characters", "mean tokens", "cut at the limit", "faults")
        parts.append(_table(header, rows))
    caveats = {pair.controlled.caveat for pair in summary.pairs if pair.controlled is not None}
    return parts + [f"On equal lengths: {caveat}\n" for caveat in sorted(caveats)]


def _further(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    parts: list[str] = []
    if summary.methods:
        parts.append("## Methods against each other (McNemar, by prompts won)\n")
        rows = [
            (
                row.judge,
                row.test.name,
                row.test.better,
                row.test.worse,
                p_value(row.test.p_value),
                p_value(row.p_holm),
            )
            for row in summary.methods
        ]
        parts.append(
            _table(("judge", "test", "only the first won", "only the second won", "p", "p (Holm)"), rows)
        )
    if summary.agreement:
        parts.append("## Agreement of judges\n")
        agreed = [
            (
                " and ".join(row.judges),
                row.num_questions,
                percent(row.raw),
                "–" if math.isnan(row.kappa) else f"{row.kappa:.2f}",
            )
            for row in summary.agreement
        ]
        parts.append(_table(("judges", "questions", "same outcome", "Cohen's kappa"), agreed))
    if data.preference:
        parts.append("## Implicit rewards on held-out pairs\n")
        rewards = [
            (
                name,
                f"{found.num_pairs:,}",
                percent(found.accuracy),
                percent_interval(found.accuracy_interval),
                f"{found.mean_margin:+.3f}",
                "–" if found.reward_margin is None else f"{found.reward_margin:+.4f}",
            )
            for name, found in sorted(data.preference.items())
        ]
        header = ("model", "pairs", "accuracy", "interval", "mean margin (nats)", "reward margin")
        parts.append(_table(header, rewards))
    if summary.frontier:
        parts.append("## Reward and KL\n")
        points = [
            (point.name, f"{point.kl:.3f}", f"{point.reward:.4g}", "yes" if point.is_efficient else "no")
            for point in summary.frontier
        ]
        parts.append(_table(("checkpoint", "KL (nats)", "reward", "efficient"), points))
    return parts


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_words(str(cell)) for cell in line)} |\n" for line in lines)


# What would end a table's cell or begin a code, an emphasis, a link, a formula, an entity or a heading. An underscore
# inside a word, as in most names of settings, begins nothing.
_INLINE = re.compile(r"[\\|`*~$\[]|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#|&(?=#?\w+;)")
# What would make a list, a quotation, a rule or a heading of a line that begins with it.
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)])|(?=[-+>=]))")


def _words(text: str) -> str:
    """Return a text as words within a line, whatever stands in it; a bare address may still be shown as a link to it.

    >>> _words("a|b\\n*c* 1<2 top_p")
    'a\\\\|b \\\\*c\\\\* 1&lt;2 top_p'
    """
    return _INLINE.sub(r"\\\g<0>", " ".join(shown(text).split())).replace("<", "&lt;")


def _line(text: str) -> str:
    """Return a text as a whole line.

    >>> _line("- 1. a"), _line("1. a")
    ('\\\\- 1. a', '1\\\\. a')
    """
    return _BLOCK.sub(r"\1\\", _words(text))
