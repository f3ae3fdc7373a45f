"""An evaluation report as Markdown, for a terminal or a repository: the page's sections, samples left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from dynamic_dpo.eval.report.alpaca import ALPACA_HEADER, alpaca_caveats, alpaca_lines
from dynamic_dpo.eval.report.arena import (
    HEADER,
    LABEL_NAMES,
    arena_lines,
    caveats,
    effects_of,
    label_lines,
)
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.summary import EvaluationSummary
from dynamic_dpo.eval.report.words import finding_sentences, kappa_words, p_value, percent, percent_interval
from dynamic_dpo.eval.statistics.position_bias import PositionBias
from dynamic_dpo.eval.statistics.win_rate import WinRate
from dynamic_dpo.pages.text import shown


def markdown(data: EvaluationData, summary: EvaluationSummary) -> str:
    """Return the whole report."""
    blocks = [block for make in SECTIONS for block in make(data, summary)]
    return "\n".join(blocks).rstrip() + "\n"


def _head(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    return [f"# {words_of(data.title)}\n"] + ([f"{line_of(data.created)}\n"] if data.created else [])


def _alarms(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    return [f"> **Read this first.** {words_of(alarm)}\n" for alarm in summary.alarms]


def _win_rates(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    if not summary.pairs:
        return []
    header = (
        "judge", "model", "against", "prompts", "W", "L", "T", "invalid", "win rate",
        f"{100 * data.confidence:g} % interval", "W/(W+L)", "at equal length", "p", "p (Holm)",
        "prompts needed",
    )  # fmt: skip
    rows = [
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
            p_value(pair.overall.p_value),
            p_value(pair.p_holm),
            "–" if pair.overall.num_needed is None else f"{pair.overall.num_needed:,}",
        )
        for pair in summary.pairs
    ]
    found = [f"- {line_of(sentence)}" for sentence in finding_sentences(summary.pairs)]
    return ["## Win rates\n", *found, "\n" + markdown_table(header, rows)]


def _alpaca(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    blocks = []
    for result in summary.alpaca:
        by = f", by {words_of(result.judge)}" if len(summary.alpaca) > 1 else ""
        blocks += [f"## AlpacaEval 2{by}\n", markdown_table(ALPACA_HEADER, alpaca_lines(result))]
        blocks += [f"{line_of(sentence)}\n" for sentence in alpaca_caveats(result)]
    return blocks


def _arena(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    blocks = []
    for result in summary.arena:
        by = f", by {words_of(result.overall.judge)}" if len(summary.arena) > 1 else ""
        for name, arena in (("all prompts", result.overall), *result.by_category.items()):
            effects = effects_of(arena)
            blocks += [
                f"## Arena-Hard score, {words_of(name)}{by}\n",
                markdown_table(HEADER, arena_lines(arena)),
                *([f"What style gains: {line_of(effects)}.\n"] if effects else []),
            ]
        blocks += [markdown_table(("model", *LABEL_NAMES), label_lines(result))]
        blocks += [f"{line_of(sentence)}\n" for sentence in caveats(result)]
    return blocks


def _categories(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    rows = [
        (pair.overall.model, pair.overall.baseline, name, part.num_prompts, *_rate_and_interval(part))
        for pair in summary.pairs
        for name, part in pair.by_category.items()
    ]
    header = ("model", "against", "category", "prompts", "win rate", "interval")
    return ["## By category\n", markdown_table(header, rows)] if rows else []


def _rate_and_interval(result: WinRate) -> tuple[str, str]:
    return percent(result.rate), percent_interval(result.interval)


def _lengths(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    header = ("model", "outputs", "mean characters", "mean tokens", "cut at the limit", "faults")
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
    caveats = {pair.controlled.caveat for pair in summary.pairs if pair.controlled is not None}
    return [
        *(["## Outputs\n", markdown_table(header, rows)] if rows else []),
        *(f"On equal lengths: {caveat}\n" for caveat in sorted(caveats)),
    ]


def _judges(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    if not summary.judges:
        return []
    header = (
        "judge", "judgements", "invalid", "chose the first", "same in both orders", "flipped", "tokens", "cost",
    )  # fmt: skip
    rows = [
        (
            judge.name,
            f"{judge.num_judgements:,}",
            judge.num_invalid,
            *_order(judge.bias),
            f"{judge.prompt_tokens + judge.completion_tokens:,}",
            f"{judge.cost:.4g}",
        )
        for judge in summary.judges
    ]
    return ["## Judges\n", markdown_table(header, rows)]


def _order(bias: PositionBias | None) -> tuple[str, str, str]:
    if bias is None:
        return ("sees no order", "–", "–")
    return percent(bias.first_share), percent(bias.consistency), percent(bias.flip_rate)


def _strengths(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    blocks = []
    for judge in summary.judges:
        if judge.strengths is None:
            continue
        rows = [
            (
                row.name,
                f"{row.strength:+.2f}",
                f"{row.interval.low:+.2f} to {row.interval.high:+.2f}",
                row.group,
            )
            for row in judge.strengths.models
        ]
        blocks += [
            f"## Strengths (Bradley-Terry), by {words_of(judge.name)}\n",
            markdown_table(("model", "log-odds", "interval", "group"), rows),
            *(f"{line_of(note)}\n" for note in judge.strengths.notes),
        ]
    return blocks


def _methods(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    header = ("judge", "test", "only the first won", "only the second won", "p", "p (Holm)")
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
    heading = "## Methods against each other (McNemar, by prompts won)\n"
    return [heading, markdown_table(header, rows)] if rows else []


def _agreement(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    header = ("judges", "questions", "same outcome", "Cohen's kappa (interval)")
    rows = [
        (
            " and ".join(row.judges),
            row.num_questions,
            percent(row.raw),
            kappa_words(row),
        )
        for row in summary.agreement
    ]
    return ["## Agreement of judges\n", markdown_table(header, rows)] if rows else []


def _rewards(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    header = ("model", "pairs", "accuracy", "interval", "mean margin (nats)", "reward margin")
    rows = [
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
    return ["## Implicit rewards on held-out pairs\n", markdown_table(header, rows)] if rows else []


def _frontier(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    header = ("checkpoint", "KL (nats)", "reward", "efficient")
    rows = [
        (point.name, f"{point.kl:.3f}", f"{point.reward:.4g}", "yes" if point.is_efficient else "no")
        for point in summary.frontier
    ]
    return ["## Reward and KL\n", markdown_table(header, rows)] if rows else []


def _provenance(data: EvaluationData, summary: EvaluationSummary) -> list[str]:
    return [
        block
        for heading, values in data.provenance.items()
        for block in (
            f"## Made with: {words_of(heading)}\n",
            markdown_table(("key", "value"), values.items()),
        )
    ]


# The report from top to bottom. A new section is a function above and a line here.
SECTIONS: tuple[Callable[[EvaluationData, EvaluationSummary], list[str]], ...] = (
    _head,
    _alarms,
    _alpaca,
    _arena,
    _win_rates,
    _categories,
    _lengths,
    _judges,
    _strengths,
    _methods,
    _agreement,
    _rewards,
    _frontier,
    _provenance,
)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, whatever stands in its cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(words_of(str(cell)) for cell in line)} |\n" for line in lines)


# What would end a table's cell or begin a code, an emphasis, a link, a formula, an entity or a heading. An underscore
# inside a word, as in most names of settings, begins nothing.
_INLINE = re.compile(r"[\\|`*~$\[]|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#|&(?=#?\w+;)")
# What would make a list, a quotation, a rule or a heading of a line that begins with it.
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)])|(?=[-+>=]))")


def words_of(text: str) -> str:
    """Return a text as words within a line, whatever stands in it; a bare address may still be shown as a link to it.

    >>> words_of("a|b\\n*c* 1<2 top_p")
    'a\\\\|b \\\\*c\\\\* 1&lt;2 top_p'
    """
    return _INLINE.sub(r"\\\g<0>", " ".join(shown(text).split())).replace("<", "&lt;")


def line_of(text: str) -> str:
    """Return a text as a whole line.

    >>> line_of("- 1. a"), line_of("1. a")
    ('\\\\- 1. a', '1\\\\. a')
    """
    return _BLOCK.sub(r"\1\\", words_of(text))
