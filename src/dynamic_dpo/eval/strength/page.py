"""The page about a curve over strengths: what held-out pairs say of each, which was chosen, and what that is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import interval_bar
from dynamic_dpo.eval.report.words import percent
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.eval.strength.curve import StrengthPoint
from dynamic_dpo.pages.shapes import card, findings, key_figures, made_with, page, row, rows, section, table

# What the page is not to be read as; `docs/after_training.md` says the same.
NOT = (
    "No model of this line was trained: a weaker one is not what a larger beta would have given, nor an earlier step "
    "of the run. It lies between the two in weights, and what it does is measured, not derived.",
    "The strength was chosen on the pairs that its loss is shown for: the loss of the chosen one is the least of "
    "several, and so a little better than what other pairs would give. Where the run kept its best step by the same "
    "pairs, they have chosen twice.",
    "Loss and calibration are formed with one beta, the run's, at every strength. Another beta would move the least "
    "loss; accuracy and margins without beta it would not.",
    "The KL is estimated on the tokens of the held-out answers, which nobody sampled for it: a divergence where "
    "the answers are the reference's own, and elsewhere a measure of how far the model has moved on them.",
    "Whether anybody likes the answers better is not asked here: generate and compare (dynamic-dpo evaluate).",
)


def strength_page(
    points: Sequence[StrengthPoint],
    chosen: StrengthPoint,
    *,
    name: str,
    beta: float,
    num_pairs: int,
    choose: str,
    details: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the whole page.

    Args:
        points: The curve, by strength.
        chosen: The point that was chosen.
        name: What the run is called.
        beta: Scale of the rewards.
        num_pairs: Held-out pairs.
        choose: By what it was chosen, in words.
        details: What the numbers were made with, by group.
    """
    subtitle = (
        f"{len(points)} models on the line through reference and policy, on {num_pairs:,} held-out pairs"
    )
    parts = [_chosen(points, chosen, choose), _losses(points, chosen), _numbers(points, chosen, beta)]
    limits = section("not", "What this is not", "", card(findings(NOT)))
    return page(f"Strength of {name}", subtitle, [*parts, limits, made_with(details)])


def _chosen(points: Sequence[StrengthPoint], chosen: StrengthPoint, choose: str) -> Markup:
    policy = next((point for point in points if point.strength == 1), None)
    shown = [
        ("chosen strength", f"{chosen.strength:g}"),
        ("chosen by", choose),
        ("its held-out loss", f"{chosen.loss:.4f}"),
        *([("the policy's (strength 1)", f"{policy.loss:.4f}")] if policy else []),
        ("its accuracy", percent(chosen.accuracy)),
    ]
    return section("chosen", "What was chosen", "", key_figures(shown))


def _losses(points: Sequence[StrengthPoint], chosen: StrengthPoint) -> Markup:
    half = {point.strength: 0.0 if math.isnan(point.loss_error) else 2 * point.loss_error for point in points}
    ends = [point.loss + sign * half[point.strength] for point in points for sign in (-1, 1)]
    ends = [end for end in (*ends, math.log(2)) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 0.05
    scale = (low - room, high + room)
    lines = [
        row(
            f"{point.strength:g}",
            {0.0: "the reference", 1.0: "the policy"}.get(point.strength, ""),
            interval_bar(
                point.loss,
                Interval(point.loss - half[point.strength], point.loss + half[point.strength]),
                scale=scale,
                reference=math.log(2),
                label=f"loss {point.loss:.4f} at strength {point.strength:g}",
            ),
            f"{point.loss:.4f}",
            "chosen" if point is chosen else "",
        )
        for point in points
    ]
    lead = (
        "The held-out loss by strength, with two standard errors on either side. Pairs are the same everywhere, "
        "so that differences are known better than the bars show. The line is ln 2, where the reference stands."
    )
    ticks = tuple(f"{value:.3g}" for value in (scale[0], sum(scale) / 2, scale[1]))
    return section("loss", "Held-out loss", lead, card(rows(*lines, scale=ticks)))


def _numbers(points: Sequence[StrengthPoint], chosen: StrengthPoint, beta: float) -> Markup:
    header = (
        "strength",
        "loss",
        "accuracy",
        "calibration error",
        "KL, nats a token",
        "mean margin, nats",
        "chosen answers, nats a token",
    )
    lines = [
        (
            f"{point.strength:g}{' (chosen)' if point is chosen else ''}",
            f"{point.loss:.4f}",
            percent(point.accuracy),
            f"{point.calibration_error:.4f}",
            f"{point.kl:.4g}",
            f"{point.mean_margin:+.3f}",
            f"{point.chosen_change:+.4f}",
        )
        for point in points
    ]
    lead = (
        f"With beta {beta:g}. Loss: mean of -log σ(beta × margin). Calibration error: how far the probability "
        "σ(beta × margin) is from the share of pairs that are ranked right, over 10 bins of confidence. KL: of the "
        "reference from the model, estimated on single tokens. Last column: what chosen answers have gained."
    )
    return section("numbers", "In numbers", lead, card(table(header, lines)))
