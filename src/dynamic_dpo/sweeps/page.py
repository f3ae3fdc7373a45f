"""The page of a sweep: its best, gain against distance, and a line for each training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import frontier_plot
from dynamic_dpo.eval.report.words import percent
from dynamic_dpo.eval.scoring.metrics import FrontierPoint, reward_kl_frontier
from dynamic_dpo.pages.shapes import alarm, card, key_figures, made_with, page, section, table
from dynamic_dpo.sweeps.figures import CRITERIA, RunFigures
from dynamic_dpo.sweeps.plan import SweepPlan
from dynamic_dpo.utils.durations import duration

_NOTHING = Markup()
_HEADER = (
    "",
    "training",
    "held-out loss",
    "lowest, at step",
    "accuracy",
    "margin",
    "drift",
    "win rate",
    "KL",
    "beta at the end",
    "time",
)


def sweep_page(plan: SweepPlan, runs: Sequence[RunFigures], failed: Mapping[str, str]) -> str:
    """Return the whole page.

    Args:
        plan: The sweep.
        runs: The figures of the trainings that are done, the best first; at least one.
        failed: Name to what happened, for the others.
    """
    links = [("The evaluation", "evaluation/report.html")] if plan.evaluation is not None else []
    warnings = [*failed.values(), *_warnings(plan, runs)]
    parts = [
        alarm("Read this first", warnings) if warnings else _NOTHING,
        _best(plan, runs),
        _frontier(runs),
        _table(plan, runs),
        made_with({"sweep": {"trainings": len(plan.trainings), "best by": CRITERIA[plan.criterion]}}),
    ]
    done = f"{len(runs)} of {len(plan.trainings)} trainings, best first by {CRITERIA[plan.criterion]}"
    return page("Sweep", done, parts, links=links)


def command_of(plan: SweepPlan, figures: RunFigures) -> str:
    """Return the command that repeats one training by itself."""
    return " ".join([plan.command, *(_quoted(word) for word in figures.overrides)])


def _warnings(plan: SweepPlan, runs: Sequence[RunFigures]) -> list[str]:
    found = []
    if not plan.shares_loss:
        found.append(
            "The trainings differ in their loss, so that their held-out losses are numbers of different kinds: "
            "compare accuracy or win rate."
        )
    early = [figures.name for figures in runs if figures.best_step < figures.step and _falls_back(figures)]
    if early:
        found.append(
            f"The held-out loss of {', '.join(early)} was lower before its end: shorter training, or "
            "dpo_training.keep_best, would have kept that model."
        )
    return found


def _falls_back(figures: RunFigures) -> bool:
    return figures.loss > figures.best_loss * 1.02


def _best(plan: SweepPlan, runs: Sequence[RunFigures]) -> Markup:
    best = runs[0]
    shown = [
        ("best", best.name),
        ("held-out loss", _number(best.loss)),
        ("held-out accuracy", percent(best.accuracy)),
        ("win rate", "–" if best.win_rate is None else percent(best.win_rate)),
        ("time of all trainings", duration(sum(figures.seconds for figures in runs))),
        ("pairs scored with the reference", f"{sum(figures.reference_computed for figures in runs):,}"),
    ]
    lead = (
        f"The best by {CRITERIA[plan.criterion]}. It was chosen on the pairs that its figures are of, so these are "
        f"a little too good: the more trainings, the more so. By itself: {command_of(plan, best)}"
    )
    return section("best", "The best", lead, key_figures(shown))


def _frontier(runs: Sequence[RunFigures]) -> Markup:
    if all(figures.kl is not None and figures.win_rate is not None for figures in runs):
        points = [FrontierPoint(one.name, one.kl or 0.0, one.win_rate or 0.0) for one in runs]
        names = ("KL to the reference (nats an output)", "win rate")
    else:
        points = [FrontierPoint(one.name, one.drift, one.accuracy) for one in runs if one.drift is not None]
        names = ("drift of the held-out answers (nats an answer)", "held-out accuracy")
    points = [point for point in points if math.isfinite(point.kl) and math.isfinite(point.reward)]
    if not points:
        return _NOTHING
    lead = (
        "What was gained, and how far the model went from its reference for it. No other training beats the filled "
        "points."
    )
    return section(
        "frontier", "Gain and distance", lead, card(frontier_plot(reward_kl_frontier(points), *names))
    )


def _table(plan: SweepPlan, runs: Sequence[RunFigures]) -> Markup:
    lines = [
        (
            str(place),
            figures.name,
            _number(figures.loss),
            f"{_number(figures.best_loss)}, {figures.best_step}",
            percent(figures.accuracy),
            _number(figures.margin),
            _number(figures.drift),
            "–" if figures.win_rate is None else percent(figures.win_rate),
            _number(figures.kl),
            _number(figures.beta_final),
            duration(figures.seconds),
        )
        for place, figures in enumerate(runs, start=1)
    ]
    lead = (
        "Loss, accuracy and margin (nats) are of held-out pairs under the weights it ended with. Drift is how much "
        "less likely than under the reference their answers have become, in nats an answer, the mean over both: an "
        "estimate of the divergence of the reference from the policy where the reference has written them."
    )
    return section("trainings", "Training by training", lead, card(table(_HEADER, lines)))


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _quoted(word: str) -> str:
    return word if all(character.isalnum() or character in "._=/:+,-" for character in word) else f"'{word}'"
