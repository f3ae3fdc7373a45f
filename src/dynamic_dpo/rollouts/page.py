"""The page of a rollout: its sections, from what came out down to what it was made with.

A section is one function in `SECTIONS`: it takes the rollout's numbers and returns shapes of `dynamic_dpo.pages`, or
nothing where there is nothing to show. No clock is read: a rollout that is made again has the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import interval_bar, share_bar
from dynamic_dpo.eval.report.words import percent, percent_interval
from dynamic_dpo.pages.shapes import (
    Chip,
    Output,
    alarm,
    card,
    key_figures,
    legend,
    made_with,
    page,
    row,
    rows,
    section,
    side_by_side,
    table,
)
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.figures import histogram
from dynamic_dpo.rollouts.folder import RolloutFolder
from dynamic_dpo.rollouts.summary import NUM_SHOWN, RolloutSummary, ShownPair, described

NOTHING = Markup()

MEANINGS = {
    "evaluation_prompt": "prompts that an evaluation asks: not sampled",
    "left_out": "prompts that a model could not be asked",
    "empty": "answers of white space alone",
    "not_text": "answers that are no Unicode text",
    "truncated": "answers cut off without a stop",
    "refusal": "answers that a pattern of a refusal was found in",
    "identical": "answers that repeat an earlier one of the prompt",
    "invalid_judgement": "comparisons without a valid verdict in both orders",
    "not_judged": "comparisons that the judge's budget left without a verdict",
    "no_label": "answers without any valid comparison",
    "too_few_answers": "prompts with fewer than two answers left",
    "nothing_proposed": "prompts that the rule found no pair for",
    "identical_pair": "pairs of one text",
    "tie": "pairs of equal scores",
    "gap_too_small": "pairs whose scores differ by less than pairs.min_gap",
    "near_identical": "pairs that are too much alike",
    "length_mismatch": "pairs whose lengths differ too much",
}
"""Reason to what was left out for it."""


class _Made(NamedTuple):
    folder: RolloutFolder
    summary: RolloutSummary
    fingerprints: Mapping[str, Mapping[str, Any]]


def rollout_page(
    folder: RolloutFolder, summary: RolloutSummary, fingerprints: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the whole page.

    Args:
        folder: The rollout's folder.
        summary: Its numbers.
        fingerprints: What labels depend on, by the name of scorer or judge.
    """
    made = _Made(folder, summary, fingerprints)
    subtitle = f"{summary.num_pairs:,} pairs by {summary.rule}, from {folder.plan.policy.path}"
    return page("Rollout", subtitle, [make(made) for make in SECTIONS])


def _alarms(made: _Made) -> Markup:
    summary, found = made.summary, []
    if summary.stopped:
        found.append(f"The labelling stopped at the {summary.stopped}: what it left open is in no pair.")
    if summary.num_prompts_with_pairs < summary.num_prompts / 2:
        found.append(
            f"Only {summary.num_prompts_with_pairs:,} of {summary.num_prompts:,} prompts gave a pair; the reasons "
            "stand below."
        )
    judging = summary.judging
    if judging is not None and judging.num_invalid >= 0.05 * judging.num_judgements:
        share = percent(judging.num_invalid / judging.num_judgements)
        found.append(f"{share} of the judge's verdicts are invalid; they need not be spread evenly.")
    lengths = described(summary.length_differences)
    if lengths is not None and summary.num_pairs >= 20:
        longer = sum(difference > 0 for difference in summary.length_differences) / summary.num_pairs
        if not 0.25 <= longer <= 0.75:
            found.append(
                f"The chosen answer is the longer one in {percent(longer)} of the pairs: training on them teaches "
                "length as well (pairs.length_penalty and pairs.max_length_ratio are there for that)."
            )
    return alarm("Read this first", found) if found else NOTHING


def _figures(made: _Made) -> Markup:
    summary = made.summary
    figures = [
        ("prompts", f"{summary.num_prompts:,}"),
        ("answers", f"{summary.num_answers:,}"),
        ("pairs", f"{summary.num_pairs:,}"),
        ("prompts with a pair", f"{summary.num_prompts_with_pairs:,}"),
    ]
    if summary.gaps and summary.judge:
        figures.append(("mean gap", f"{sum(summary.gaps) / len(summary.gaps):.3g}"))
    return section("figures", "What came out", "", key_figures(figures))


def _dropped(made: _Made) -> Markup:
    if not made.summary.dropped:
        return NOTHING
    lines = [
        (reason, f"{count:,}", MEANINGS[reason]) for reason, count in sorted(made.summary.dropped.items())
    ]
    lead = "Each by the first reason that applies; dropped.jsonl lists them one by one."
    return section("dropped", "What was left out", lead, card(table(("reason", "number", "of"), lines)))


def _scores(made: _Made) -> Markup:
    summary = made.summary
    cards = [
        card(
            histogram(values, label=heading, unit=unit), table(_NUMBERS, [_numbers(values)]), heading=heading
        )
        for heading, values, unit in (
            ("Scores of all labelled answers", summary.scores, ""),
            ("Highest less lowest score of a prompt", summary.spreads, ""),
            ("Gap: chosen less rejected score", summary.gaps if summary.judge else [], ""),
            ("Length: chosen less rejected", summary.length_differences, " characters"),
        )
        if values
    ]
    if not cards:
        return NOTHING
    lead = (
        "A prompt whose answers all score alike teaches nothing; a difference of lengths that always points one way "
        "teaches length."
    )
    return section("scores", "Scores and lengths", lead, *cards)


_NUMBERS = ("", "mean", "deviation", "least", "median", "greatest")


def _numbers(values: list[float] | list[int]) -> tuple[str, ...]:
    found = described(values)
    assert found is not None
    return (
        f"{len(values):,} values",
        *(f"{found[name]:.4g}" for name in ("mean", "std", "min", "median", "max")),
    )


def _judge(made: _Made) -> Markup:
    judging = made.summary.judging
    if judging is None:
        return NOTHING
    bias = judging.bias
    label = f"chose the first: {percent(bias.first_share)}"
    first = row(
        bias.judge,
        "chose the answer shown first",
        interval_bar(bias.first_share, bias.first_interval, label=label),
        percent(bias.first_share),
        f"({percent_interval(bias.first_interval)})",
    )
    parts = {"same": bias.consistent, "half": bias.half, "flipped": bias.flipped}
    agreement = NOTHING
    if bias.num_pairs:
        agreement = row(
            "",
            f"{bias.num_pairs:,} comparisons asked in both orders",
            share_bar(
                [(kind, number / bias.num_pairs) for kind, number in parts.items()],
                label=f"{bias.consistent} consistent, {bias.half} half, {bias.flipped} flipped",
            ),
            percent(bias.consistency),
            f"agree, {percent(bias.flip_rate)} flipped",
        )
    meanings = (
        ("same", "same verdict in both orders"),
        ("half", "a tie in one order"),
        ("flipped", "another answer when the order changed"),
    )
    cost = [
        ("verdicts", f"{judging.num_judgements:,}"),
        ("invalid", f"{judging.num_invalid:,}"),
        ("replies", f"{judging.num_replies:,}"),
        ("tokens read", f"{judging.prompt_tokens:,}"),
        ("tokens written", f"{judging.completion_tokens:,}"),
        ("money", f"{judging.cost:.4g}"),
    ]
    return section(
        "judge",
        "The judge",
        "An answer wins where both orders prefer it; what the orders disagree on is a tie.",
        card(rows(first, agreement), legend(meanings)),
        key_figures(cost),
    )


def _pairs(made: _Made) -> Markup:
    shown = made.summary.shown
    if not shown:
        return NOTHING
    lead = f"{len(shown)} of {made.summary.num_pairs:,} pairs, drawn at random."
    return section("pairs", f"{min(NUM_SHOWN, len(shown))} pairs side by side", lead, *map(_shown, shown))


def _shown(shown: ShownPair) -> Markup:
    prompt, pair = shown
    return side_by_side(
        f"prompt {prompt.id[:12]}",
        [(message.get("role", ""), message.get("content", "")) for message in prompt.messages],
        [
            Output(f"chosen ({pair.chosen.name})", pair.chosen.text, _chips(pair.chosen), is_marked=True),
            Output(f"rejected ({pair.rejected.name})", pair.rejected.text, _chips(pair.rejected)),
        ],
        chips=[Chip(f"gap {pair.gap:.3g}")],
    )


def _chips(answer: Answer) -> list[Chip]:
    chips = [Chip(f"score {answer.score:.3g}")]
    if len(answer.scores) > 1:
        chips += [Chip(f"{name} {score:.3g}") for name, score in answer.scores.items()]
    return [*chips, *([] if answer.finished else [Chip("truncated", "bad")])]


def _provenance(made: _Made) -> Markup:
    folder = made.folder
    groups: dict[str, Mapping[str, object]] = {
        name: written.provenance for name, written in folder.written.items()
    }
    groups |= {f"labels by {name}": fingerprint for name, fingerprint in made.fingerprints.items()}
    groups["prompts"] = folder.plan.drawing()
    return made_with(groups)


# The page from top to bottom. A new section is a function above and a line here.
SECTIONS: tuple[Callable[[_Made], Markup], ...] = (
    _alarms,
    _figures,
    _dropped,
    _scores,
    _judge,
    _pairs,
    _provenance,
)
