"""The sections of an evaluation page behind the win rates: what the outputs and judges are like, and what was used.

Each function returns its section as HTML, or nothing where there is nothing to show.
"""

from __future__ import annotations

import math
from typing import Any

from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.figures import box_plot, frontier_plot, interval_bar, share_bar
from dynamic_dpo.eval.report.summary import EvaluationSummary, JudgeSummary
from dynamic_dpo.eval.report.words import p_value, percent, percent_interval
from dynamic_dpo.pages.markup import card, row, rows, section, table, text


def lengths_section(summary: EvaluationSummary) -> str:
    """Show how long the outputs are, and the share of each fault that the lint found."""
    if not summary.models:
        return ""
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


def order_section(summary: EvaluationSummary) -> str:
    """Show how much each judge's verdicts depend on the order."""
    if not summary.judges:
        return ""
    legend = (
        '<p class="legend"><span class="key won"></span>same verdict in both orders<span class="key tied"></span>'
        'a tie in one order<span class="key lost"></span>another model when the order changed</p>'
    )
    has_both = any(judge.bias.num_pairs for judge in summary.judges)
    return section(
        "order",
        "Does the order matter?",
        "A judge without position bias chooses the first output in half of its decided verdicts, and the same "
        "model in both orders.",
        card(rows(*map(_order_rows, summary.judges)), legend if has_both else ""),
    )


def _order_rows(judge: JudgeSummary) -> str:
    bias = judge.bias
    lines = row(
        judge.name,
        "chose the output shown first",
        interval_bar(
            bias.first_share,
            bias.first_interval,
            label=f"{judge.name} chose the first: {percent(bias.first_share)}",
        ),
        percent(bias.first_share),
        f"({percent_interval(bias.first_interval)})",
    )
    if bias.num_pairs:
        parts = {"won": bias.consistent, "tied": bias.half, "lost": bias.flipped}
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


def strengths_section(summary: EvaluationSummary) -> str:
    """Show the strengths of three or more models, judge by judge."""
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
        notes = "".join(f'<p class="note">{text(note)}</p>' for note in judge.strengths.notes)
        cards.append(card(rows(*lines), notes, heading=f"By {judge.name}"))
    if not cards:
        return ""
    return section(
        "strengths",
        "Strengths of all models (Bradley–Terry)",
        "Log-odds of being preferred to an average model; the difference of two is the log-odds between them.",
        *cards,
    )


def methods_section(summary: EvaluationSummary) -> str:
    """Show the tests between methods with a common baseline."""
    if not summary.methods:
        return ""
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


def agreement_section(summary: EvaluationSummary) -> str:
    """Show how far the judges agree."""
    if not summary.agreement:
        return ""
    lines = [
        (
            " and ".join(found.judges),
            f"{found.num_questions:,}",
            percent(found.raw),
            "–" if math.isnan(found.kappa) else f"{found.kappa:.2f}",
        )
        for found in summary.agreement
    ]
    header = ("judges", "questions", "same outcome", "Cohen's kappa")
    lead = "Kappa is 1 for full agreement and 0 for what chance would give."
    return section("agreement", "Do the judges agree?", lead, card(table(header, lines)))


def rewards_sections(data: EvaluationData, summary: EvaluationSummary) -> str:
    """Show implicit rewards on held-out pairs, and the frontier of reward and KL."""
    parts = []
    if data.preference:
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
        parts.append(section("rewards", "Implicit rewards", lead, card(table(header, lines))))
    if summary.frontier:
        lead = (
            "What was gained, and how far the policy left its reference for it. No other checkpoint beats the "
            "filled points."
        )
        parts.append(section("frontier", "Reward and KL", lead, card(frontier_plot(summary.frontier))))
    return "\n".join(parts)


def provenance_section(data: EvaluationData, summary: EvaluationSummary) -> str:
    """List what the numbers were made with, folded away: it matters to a few readers, and then in full."""
    groups: dict[str, Any] = dict(data.provenance)
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
    tables = "".join(f"<h3>{text(name)}</h3>{table((), values.items())}" for name, values in groups.items())
    return f'<details class="made"><summary>What this was made with</summary>\n{tables}</details>'
