"""The page of an inspection: what to look at first, counts, lengths, repetitions, overlaps, rows as they are seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from dynamic_dpo.eval.report.words import percent
from dynamic_dpo.inspection.figures import PairFigures, described
from dynamic_dpo.inspection.similarity import PairSimilarity
from dynamic_dpo.inspection.texts import PairTexts
from dynamic_dpo.pages.shapes import (
    Chip,
    Output,
    alarm,
    card,
    key_figures,
    made_with,
    page,
    section,
    side_by_side,
    table,
)
from dynamic_dpo.rollouts.figures import histogram

NOTHING = Markup()
_NUM_LISTED = 20


class Inspection(NamedTuple):
    """Everything that an inspection found.

    Attributes:
        name: The data set's name.
        report: The counts of its preparation, as in ``data_report.json``.
        parts: ``train`` and ``validation`` to their figures.
        leaked: Rows to train on that a prompt of the validation was found in.
        shown: Pairs as the model sees them.
        similarities: CHES by pair, the most alike first; empty where no model was asked.
        evaluation: Texts of the evaluations' prompts, in the order that overlaps name them by.
        settings: What it was made with.
    """

    name: str
    report: Mapping[str, Any]
    parts: Mapping[str, PairFigures]
    leaked: Sequence[int]
    shown: Sequence[PairTexts]
    similarities: Sequence[PairSimilarity]
    evaluation: Sequence[str]
    settings: Mapping[str, Any]


def inspection_page(found: Inspection) -> str:
    """Return the whole page."""
    pairs = sum(part.pairs for part in found.parts.values())
    return page("Preference data", f"{pairs:,} pairs of {found.name}", [make(found) for make in SECTIONS])


def findings(found: Inspection) -> list[str]:
    """Return what a user should look at before training, one sentence each; empty where nothing stands out."""
    sentences = []
    train = found.parts["train"]
    quarantined = sum(source["quarantined"] for source in found.report["sources"])
    total = sum(source["rows"] for source in found.report["sources"])
    if quarantined:
        sentences.append(
            f"{quarantined:,} of {total:,} rows give no pair ({percent(quarantined / total)}); quarantine.jsonl "
            "lists them."
        )
    truncated = found.report["train"]["truncated"]
    if truncated > 0.02 * train.pairs:
        sentences.append(
            f"{truncated:,} pairs ({percent(truncated / train.pairs)}) are longer than dataset.max_len and are cut."
        )
    if train.pairs >= 20 and not 0.4 <= train.longer_chosen <= 0.6:
        which = "chosen" if train.longer_chosen > 0.5 else "rejected"
        share = max(train.longer_chosen, 1 - train.longer_chosen)
        sentences.append(
            f"The {which} answer is the longer one in {percent(share)} of the pairs: training on them teaches "
            "length as well."
        )
    for rows, what in (
        (train.equal, "have two answers that are equal but for case, punctuation and white space"),
        (train.repeated, "say what an earlier pair says"),
        (train.contradicted, "say the reverse of an earlier pair"),
    ):
        if rows:
            sentences.append(f"{len(rows):,} pairs ({percent(len(rows) / train.pairs)}) {what}.")
    if len(train.refusals_chosen) > 0.05 * train.pairs:
        sentences.append(
            f"{percent(len(train.refusals_chosen) / train.pairs)} of the chosen answers begin with a refusal, and "
            f"{percent(len(train.refusals_rejected) / train.pairs)} of the rejected ones."
        )
    if train.overlaps:
        prompts = {overlap.prompt for overlap in train.overlaps}
        sentences.append(
            f"{len(train.overlaps):,} pairs have a run of words in common with {len(prompts):,} of "
            f"{len(found.evaluation):,} prompts of the evaluation: --decontaminate writes the others."
        )
    if found.leaked:
        sentences.append(
            f"{len(found.leaked):,} pairs to train on have a prompt in common with the validation."
        )
    return sentences


def _alarms(found: Inspection) -> Markup:
    sentences = findings(found)
    return alarm("Look at this first", sentences) if sentences else NOTHING


def _figures(found: Inspection) -> Markup:
    train = found.parts["train"]
    shown = [
        ("pairs to train on", f"{train.pairs:,}"),
        ("prompts", f"{train.prompts:,}"),
        (
            "pairs of the validation",
            f"{found.parts['validation'].pairs:,}" if "validation" in found.parts else "–",
        ),
        ("kind of rows", str(found.report["kind"])),
        ("chosen is the longer one", percent(train.longer_chosen)),
    ]
    return section("figures", "What is there", "", key_figures(shown))


def _sources(found: Inspection) -> Markup:
    lines = [
        (
            source["name"],
            f"{source['rows']:,}",
            f"{source['quarantined']:,}",
            "; ".join(f"{reason}: {count:,}" for reason, count in source["reasons"].items()) or "–",
        )
        for source in found.report["sources"]
    ]
    header = ("source", "rows", "without a pair", "why")
    return section("sources", "Sources", "", card(table(header, lines)))


def _lengths(found: Inspection) -> Markup:
    train = found.parts["train"]
    if not train.pairs:
        return NOTHING
    header = ("tokens", "mean", "least", "median", "95 %", "greatest")
    lines = []
    for name, values in [*train.lengths.items(), ("chosen less rejected", train.gaps)]:
        figures = described(values)
        assert figures is not None
        shown = (figures[key] for key in ("mean", "min", "median", "p95", "max"))
        lines.append((name, *(f"{value:,.5g}" for value in shown)))
    lead = (
        "After truncation. A difference of lengths that points one way is a preference that training will find "
        "before any other."
    )
    return section(
        "lengths",
        "Lengths",
        lead,
        card(table(header, lines)),
        card(
            histogram(train.gaps, label="chosen less rejected", unit=" tokens"),
            heading="Chosen less rejected",
        ),
    )


def _faults(found: Inspection) -> Markup:
    train = found.parts["train"]
    rows = [
        ("answers equal but for case, punctuation and white space", train.equal),
        ("pairs that repeat an earlier one", [row for row, _ in train.repeated]),
        ("pairs that say the reverse of an earlier one", [row for row, _ in train.contradicted]),
        ("chosen answers that begin with a refusal", train.refusals_chosen),
        ("rejected answers that begin with a refusal", train.refusals_rejected),
        ("pairs whose prompt is in the validation too", found.leaked),
    ]
    lines = [
        (what, f"{len(which):,}", percent(len(which) / train.pairs) if train.pairs else "–", _listed(which))
        for what, which in rows
    ]
    header = ("what", "pairs", "share", "rows")
    return section("faults", "Repetitions, contradictions, refusals", "", card(table(header, lines)))


def _overlaps(found: Inspection) -> Markup:
    train = found.parts["train"]
    if not found.evaluation:
        return NOTHING
    lines = [
        (str(overlap.row), overlap.words, found.evaluation[overlap.prompt][:200])
        for overlap in train.overlaps[:_NUM_LISTED]
    ]
    lead = (
        f"{len(train.overlaps):,} pairs have a run of words in common with one of {len(found.evaluation):,} prompts. "
        "What a model has trained on, an evaluation cannot judge it by."
    )
    content = [card(table(("row", "in common", "prompt of the evaluation"), lines))] if lines else []
    return section("overlaps", "Prompts of the evaluation", lead, *content)


def _similarities(found: Inspection) -> Markup:
    if not found.similarities:
        return NOTHING
    values = [pair.ches for pair in found.similarities]
    lines = [(str(pair.row), f"{pair.ches:.3f}") for pair in found.similarities[:_NUM_LISTED]]
    lead = (
        "Centred hidden embedding similarity of chosen and rejected, relative to the chosen answer's own states: 0 "
        "where both have the same states, lower where they differ. Pairs far to the right pull the chosen answer's "
        "probability down with the rejected one's (Razin et al. 2024)."
    )
    return section(
        "similarity",
        "How alike the model finds the two answers",
        lead,
        card(histogram(values, label="similarity")),
        card(table(("row", "similarity"), lines), heading="The most alike"),
    )


def _shown(found: Inspection) -> Markup:
    if not found.shown:
        return NOTHING
    blocks = [
        side_by_side(
            f"row {pair.row}",
            [("", pair.prompt)],
            [
                Output(
                    "chosen",
                    pair.chosen,
                    _chips(pair.num_chosen_tokens, pair.num_chosen_read),
                    is_marked=True,
                ),
                Output("rejected", pair.rejected, _chips(pair.num_rejected_tokens, pair.num_rejected_read)),
            ],
            chips=[Chip(f"prompt {pair.num_prompt_tokens} tokens")],
        )
        for pair in found.shown
    ]
    lead = "Decoded from the ids that the model will be given, special tokens included, drawn at random."
    return section("rows", f"{len(found.shown)} pairs as the model sees them", lead, *blocks)


def _chips(num_scored: int, num_read: int) -> list[Chip]:
    chips = [Chip(f"{num_scored} tokens")]
    return [*chips, Chip(f"{num_read} more of others, not scored")] if num_read else chips


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_NUM_LISTED])
    return f"{shown} …" if len(rows) > _NUM_LISTED else shown or "–"


def _provenance(found: Inspection) -> Markup:
    return made_with({"inspection": found.settings, "preparation": found.report["settings"]})


# The page from top to bottom. A new section is a function above and a line here.
SECTIONS: tuple[Callable[[Inspection], Markup], ...] = (
    _alarms,
    _figures,
    _sources,
    _lengths,
    _faults,
    _overlaps,
    _similarities,
    _shown,
    _provenance,
)
