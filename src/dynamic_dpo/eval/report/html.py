"""An evaluation report as one page: its sections, from the win rates down to what the numbers were made with.

A section is one function in `SECTIONS`: it takes the records and the numbers computed from them, and returns what
`dynamic_dpo.pages.shapes` makes of them, or nothing where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from dynamic_dpo.eval.report.alpaca import alpaca_section
from dynamic_dpo.eval.report.arena import arena_section
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.figures import box_plot, frontier_plot, interval_bar, share_bar
from dynamic_dpo.eval.report.samples import samples
from dynamic_dpo.eval.report.summary import EvaluationSummary, PairSummary
from dynamic_dpo.eval.report.words import finding_sentences, kappa_words, p_value, percent, percent_interval
from dynamic_dpo.eval.statistics.position_bias import PositionBias
from dynamic_dpo.eval.statistics.win_rate import WinRate
from dynamic_dpo.pages.shapes import (
    alarm,
    card,
    findings,
    legend,
    made_with,
    note,
    page,
    row,
    rows,
    section,
    table,
)

SHARES = ("0 %", "50 %", "100 %")
NOTHING = Markup()


def html_page(data: EvaluationData, summary: EvaluationSummary) -> str:
    """Return the whole page."""
    return page(data.title, _subtitle(data, summary), [make(data, summary) for make in SECTIONS])


def _subtitle(data: EvaluationData, summary: EvaluationSummary) -> str:
    judged = {name for pair in summary.pairs for name in (pair.overall.model, pair.overall.baseline)}
    num_models = len({output.model for output in data.outputs} | judged)
    facts = [f"{len(data.prompts):,} prompts"] if data.prompts else []
    facts += [f"{num_models} models"] if num_models else []
    facts += ["judged by " + ", ".join(judge.name for judge in summary.judges)] if summary.judges else []
    facts += [data.created] if data.created else []
    return " · ".join(facts)


def _alarms(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    return alarm("Read this first", summary.alarms) if summary.alarms else NOTHING


def _win_rates(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not summary.pairs:
        return NOTHING
    name_judge = len(summary.judges) > 1
    controlled = [pair.controlled for pair in summary.pairs if pair.controlled is not None]
    at_equal_length = [
        note(
            f"what the win rate would be if both models wrote equally long outputs. {first.caveat}",
            lead="At equal length (hollow points):",
        )
        for first in controlled[:1]
    ]
    header = (
        "comparison", "won", "lost", "tied", "invalid", "won of decided", "prompts won : lost", "p", "p (Holm)",
        "prompts needed",
    )  # fmt: skip
    return section(
        "win-rates",
        "Win rates",
        f"(won + tied / 2) / (won + lost + tied), with {100 * data.confidence:g} % intervals over prompts. "
        "The dashed line is no difference.",
        findings(finding_sentences(summary.pairs)),
        card(
            rows(*(_win_rate_row(pair, name_judge) for pair in summary.pairs), scale=SHARES), *at_equal_length
        ),
        card(
            table(header, [_counts(pair, name_judge) for pair in summary.pairs]),
            note(
                "the chance of a rate at least as far from 50 %, if neither model were better; it is below "
                f"{1 - data.confidence:.3g} exactly where the interval leaves 50 % out.",
                lead="p:",
            ),
            note(
                "how many prompts like these would show a difference as large as the observed one in four of five "
                "evaluations.",
                lead="Prompts needed:",
            ),
        ),
    )


def _win_rate_row(pair: PairSummary, name_judge: bool) -> Markup:
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
        f"{result.prompts.wins} : {result.prompts.losses}",
        p_value(result.p_value),
        p_value(pair.p_holm),
        "–" if result.num_needed is None else f"{result.num_needed:,}",
    )


def _alpaca(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    return alpaca_section(summary.alpaca)


def _arena(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    return arena_section(summary.arena)


def _categories(data: EvaluationData, summary: EvaluationSummary) -> Markup:
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
        return NOTHING
    return section(
        "categories",
        "By category",
        "The more categories one looks at, the likelier one of them stands out by chance; nothing here corrects "
        "for that.",
        *cards,
    )


def _lengths(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not summary.models:
        return NOTHING
    largest = max(model.lengths[-1] for model in summary.models)
    boxes = [
        row(
            model.name,
            f"median {model.lengths[2]:,.0f}",
            box_plot(
                model.lengths,
                model.mean_length,
                largest=largest,
                label=f"{model.name}: median {model.lengths[2]:.0f} characters, mean {model.mean_length:.0f}",
            ),
            f"{model.mean_length:,.0f}",
            "characters on average",
        )
        for model in summary.models
    ]
    faults = sorted({fault for model in summary.models for fault in model.faults})
    lines = [
        (
            model.name,
            f"{model.num_outputs:,}",
            "–" if model.mean_tokens is None else f"{model.mean_tokens:,.0f}",
            percent(model.num_unfinished / model.num_outputs),
            *(percent(model.faults.get(fault, 0) / model.num_outputs) for fault in faults),
            percent(model.num_faulty / model.num_outputs),
        )
        for model in summary.models
    ]
    named = [fault.replace("_", " ") for fault in faults]
    header = ("model", "outputs", "mean tokens", "cut at the limit", *named, "any fault")
    return section(
        "lengths",
        "Lengths and faults of the outputs",
        "Judges tend to prefer the longer output. Boxes hold the middle half; the line is the median, the hollow "
        "point the mean.",
        card(rows(*boxes, scale=("0", f"{largest:,.0f} characters"))),
        card(table(header, lines)),
    )


def _order(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    swayed = [(judge.name, judge.bias) for judge in summary.judges if judge.bias is not None]
    if not swayed:
        return NOTHING
    meanings = (
        ("same", "same verdict in both orders"),
        ("half", "a tie in one order"),
        ("flipped", "another model when the order changed"),
    )
    has_both = any(bias.num_pairs for _, bias in swayed)
    return section(
        "order",
        "Does the order matter?",
        "A judge without position bias chooses the first output in half of its decided verdicts, and the same "
        "model in both orders.",
        card(rows(*(_order_rows(*judge) for judge in swayed)), *([legend(meanings)] if has_both else [])),
    )


def _order_rows(name: str, bias: PositionBias) -> Markup:
    lines = row(
        name,
        "chose the output shown first",
        interval_bar(
            bias.first_share,
            bias.first_interval,
            label=f"{name} chose the first: {percent(bias.first_share)}",
        ),
        percent(bias.first_share),
        f"({percent_interval(bias.first_interval)})",
    )
    if bias.num_pairs:
        parts = {"same": bias.consistent, "half": bias.half, "flipped": bias.flipped}
        lines += row(
            "",
            f"{bias.num_pairs:,} questions asked in both orders",
            share_bar(
                [(kind, number / bias.num_pairs) for kind, number in parts.items()],
                label=f"{bias.consistent} consistent, {bias.half} half, {bias.flipped} flipped",
            ),
            percent(bias.consistency),
            f"consistent, {percent(bias.flip_rate)} flipped",
        )
    return lines


def _strengths(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    cards = []
    for judge in summary.judges:
        if judge.strengths is None:
            continue
        models = judge.strengths.models
        edge = max(abs(end) for model in models for end in (*model.interval, model.strength)) or 1.0
        lines = [
            row(
                model.name,
                f"group {model.group + 1}" if judge.strengths.num_groups > 1 else "",
                interval_bar(
                    model.strength,
                    model.interval,
                    scale=(-edge, edge),
                    reference=0.0,
                    label=f"{model.name}: {model.strength:+.2f}",
                ),
                f"{model.strength:+.2f}",
                f"({model.interval.low:+.2f} to {model.interval.high:+.2f})",
            )
            for model in models
        ]
        cards.append(card(rows(*lines), *map(note, judge.strengths.notes), heading=f"By {judge.name}"))
    if not cards:
        return NOTHING
    return section(
        "strengths",
        "Strengths of all models (Bradley–Terry)",
        "Log-odds of being preferred to an average model; the difference of two is the log-odds between them.",
        *cards,
    )


def _methods(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not summary.methods:
        return NOTHING
    lines = [
        (
            found.test.name,
            found.judge,
            found.test.better,
            found.test.worse,
            p_value(found.test.p_value),
            p_value(found.p_holm),
        )
        for found in summary.methods
    ]
    header = ("McNemar's test", "judge", "only the first won", "only the second won", "p", "p (Holm)")
    lead = "On the same prompts: which method beats the common baseline where the other does not."
    return section("methods", "Methods against each other", lead, card(table(header, lines)))


def _agreement(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not summary.agreement:
        return NOTHING
    lines = [
        (
            " and ".join(found.judges),
            f"{found.num_questions:,}",
            percent(found.raw),
            kappa_words(found),
        )
        for found in summary.agreement
    ]
    header = ("judges", "questions", "same outcome", "Cohen's kappa (interval)")
    lead = "Kappa is 1 for full agreement and 0 for what chance would give."
    return section("agreement", "Do the judges agree?", lead, card(table(header, lines)))


def _rewards(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not data.preference:
        return NOTHING
    lines = [
        (
            name,
            f"{found.num_pairs:,}",
            f"{percent(found.accuracy)} ({percent_interval(found.accuracy_interval)})",
            f"{found.mean_margin:+.3f} ± {found.margin_error:.3f}",
            "–" if found.reward_margin is None else f"{found.reward_margin:+.4f}",
        )
        for name, found in sorted(data.preference.items())
    ]
    header = ("model", "pairs", "ranked right", "mean margin ± s.e. (nats)", "reward margin")
    lead = (
        "Whether the policy's own log-probabilities rank held-out pairs as people did; what the policy writes "
        "is another question."
    )
    return section("rewards", "Implicit rewards", lead, card(table(header, lines)))


def _frontier(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    if not summary.frontier:
        return NOTHING
    lead = (
        "What was gained, and how far the policy left its reference for it. No other checkpoint beats the "
        "filled points."
    )
    return section("frontier", "Reward and KL", lead, card(frontier_plot(summary.frontier)))


def _samples(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    return samples(data)


def _provenance(data: EvaluationData, summary: EvaluationSummary) -> Markup:
    groups: dict[str, Mapping[str, Any]] = dict(data.provenance)
    for judge in summary.judges:
        groups[f"cost of {judge.name}"] = {
            "judgements": f"{judge.num_judgements:,}",
            "replies": f"{judge.num_attempts:,}",
            "tokens read": f"{judge.prompt_tokens:,}",
            "tokens written": f"{judge.completion_tokens:,}",
            "money": f"{judge.cost:.4g}",
        }
    groups["statistics"] = {
        "confidence": data.confidence,
        "bootstrap resamples": data.num_resamples,
        "bootstrap seed": data.seed,
    }
    return made_with(groups)


# The page from top to bottom. A new section is a function above and a line here.
SECTIONS: tuple[Callable[[EvaluationData, EvaluationSummary], Markup], ...] = (
    _alarms,
    _alpaca,
    _arena,
    _win_rates,
    _categories,
    _lengths,
    _order,
    _strengths,
    _methods,
    _agreement,
    _rewards,
    _frontier,
    _samples,
    _provenance,
)
