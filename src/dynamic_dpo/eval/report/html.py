"""An evaluation report as one page that stands alone: no script runs, nothing is fetched.

Whatever a model, a judge or a prompt says is shown as text. The numbers come computed; the sections after the win
rates, the samples and the pictures are other modules' work.
"""

from __future__ import annotations

from importlib.resources import files
from string import Template

from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.figures import interval_bar
from dynamic_dpo.eval.report.samples import samples_section
from dynamic_dpo.eval.report.sections import (
    agreement_section,
    lengths_section,
    methods_section,
    order_section,
    provenance_section,
    rewards_sections,
    strengths_section,
)
from dynamic_dpo.eval.report.summary import EvaluationSummary, PairSummary
from dynamic_dpo.eval.report.words import findings, p_value, percent, percent_interval
from dynamic_dpo.eval.statistics.win_rate import WinRate
from dynamic_dpo.pages.markup import card, row, rows, section, table, text

SHARES = ("0 %", "50 %", "100 %")


def html_page(data: EvaluationData, summary: EvaluationSummary) -> str:
    """Return the whole page."""
    sections = (
        _header(data, summary),
        _alarms(summary),
        _win_rates(data, summary),
        _categories(summary),
        lengths_section(summary),
        order_section(summary),
        strengths_section(summary),
        methods_section(summary),
        agreement_section(summary),
        rewards_sections(data, summary),
        samples_section(data),
        provenance_section(data, summary),
    )
    page = files("dynamic_dpo.eval.report").joinpath("evaluation_page.html").read_text(encoding="utf-8")
    body = "\n".join(part for part in sections if part)
    return Template(page).substitute(title=text(data.title), body=body)


def _header(data: EvaluationData, summary: EvaluationSummary) -> str:
    judged = {name for pair in summary.pairs for name in (pair.overall.model, pair.overall.baseline)}
    num_models = len({output.model for output in data.outputs} | judged)
    facts = [f"{len(data.prompts):,} prompts"] if data.prompts else []
    facts += [f"{num_models} models"] if num_models else []
    facts += ["judged by " + ", ".join(judge.name for judge in summary.judges)] if summary.judges else []
    facts += [data.created] if data.created else []
    return f"<header><h1>{text(data.title)}</h1><p>{text(' · '.join(facts))}</p></header>"


def _alarms(summary: EvaluationSummary) -> str:
    if not summary.alarms:
        return ""
    listed = "".join(f"<li>{text(alarm)}</li>" for alarm in summary.alarms)
    return f'<section class="alarm" aria-label="Read this first"><h2>Read this first</h2><ul>{listed}</ul></section>'


def _win_rates(data: EvaluationData, summary: EvaluationSummary) -> str:
    if not summary.pairs:
        return ""
    several = len(summary.judges) > 1
    found = "".join(f"<li>{text(sentence)}</li>" for sentence in findings(summary.pairs))
    note = ""
    controlled = [pair.controlled for pair in summary.pairs if pair.controlled is not None]
    if controlled:
        note = (
            '<p class="note"><strong>At equal length</strong> (hollow points): what the win rate would be if both '
            f"models wrote equally long outputs. {text(controlled[0].caveat)}</p>"
        )
    header = (
        "comparison", "won", "lost", "tied", "invalid", "won of decided", "prompts won : lost", "p", "p (Holm)",
    )  # fmt: skip
    return section(
        "win-rates",
        "Win rates",
        f"(won + tied / 2) / (won + lost + tied), with {100 * data.confidence:g} % intervals over prompts. "
        "The dashed line is no difference.",
        f'<ul class="findings">{found}</ul>\n',
        card(rows(*(_forest_row(pair, several) for pair in summary.pairs), scale=SHARES), note),
        card(table(header, (_counts(pair, several) for pair in summary.pairs))),
    )


def _forest_row(pair: PairSummary, name_judge: bool) -> str:
    result, controlled = pair.overall, pair.controlled
    second, rest = None, ""
    if controlled is not None:
        second = (controlled.rate, controlled.interval)
        rest = f"at equal length {percent(controlled.rate)} ({percent_interval(controlled.interval)})"
    small = f"against {result.baseline}, {result.num_prompts:,} prompts"
    return row(
        result.model,
        f"{small}, by {result.judge}" if name_judge else small,
        interval_bar(
            result.rate,
            result.interval,
            second=second,
            label=f"{result.model} against {result.baseline}: {percent(result.rate)}",
        ),
        *_rate(result),
        rest=rest,
    )


def _rate(result: WinRate) -> tuple[str, str]:
    return percent(result.rate), f"({percent_interval(result.interval)})"


def _counts(pair: PairSummary, name_judge: bool) -> tuple[object, ...]:
    result, counts = pair.overall, pair.overall.counts
    return (
        f"{result.model} against {result.baseline}" + (f", {result.judge}" if name_judge else ""),
        *(f"{number:,}" for number in (counts.wins, counts.losses, counts.ties, counts.invalid)),
        f"{percent(result.decisive)} ({percent_interval(result.decisive_interval)})",
        f"{pair.test.better} : {pair.test.worse}",
        p_value(pair.test.p_value),
        p_value(pair.p_holm),
    )


def _categories(summary: EvaluationSummary) -> str:
    cards = []
    for pair in summary.pairs:
        lines = [
            row(
                name,
                f"{part.num_prompts:,} prompts",
                interval_bar(part.rate, part.interval, label=f"{name}: {percent(part.rate)}"),
                *_rate(part),
            )
            for name, part in pair.by_category.items()
        ]
        if lines:
            heading = f"{pair.overall.model} against {pair.overall.baseline}"
            if len(summary.judges) > 1:
                heading += f", by {pair.overall.judge}"
            cards.append(card(rows(*lines, scale=SHARES), heading=heading))
    if not cards:
        return ""
    return section(
        "categories",
        "By category",
        "The more categories one looks at, the likelier one of them stands out by chance; nothing here corrects "
        "for that.",
        *cards,
    )
