"""The page of a loop: win rate, distance, length, beta and scores by round."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from dynamic_dpo.eval.report.figures import interval_bar
from dynamic_dpo.eval.report.words import percent, percent_interval
from dynamic_dpo.loops.figures import RoundFigures
from dynamic_dpo.loops.plan import LoopPlan
from dynamic_dpo.pages.shapes import alarm, card, key_figures, made_with, page, row, rows, section, table

NOTHING = Markup()
_HEADER = (
    "round",
    "pairs",
    "trained on",
    "score of answers",
    "gap of pairs",
    "beta, first and last",
    "KL to the first",
    "tokens an output",
    "cut off",
)
_STAGES = ("rollout", "train", "evaluate")


def loop_page(plan: LoopPlan, rounds: Sequence[RoundFigures], stopped: str | None) -> str:
    """Return the whole page.

    Args:
        plan: The loop.
        rounds: The figures of the rounds that are done, at least one.
        stopped: Why the loop ended early, in words; ``None`` if it did not.
    """
    done = f"{len(rounds)} of at most {plan.settings.rounds} rounds"
    links = [
        (f"Round {figures.round}: {title}", f"round-{figures.round}/{folder}/report.html")
        for figures in rounds
        for title, folder in (("rollout", "rollout"), ("evaluation", "evaluation"))
    ]
    parts = [
        _alarms(rounds, stopped),
        _figures(rounds),
        _win_rates(rounds),
        _by_round(rounds),
        _times(rounds),
    ]
    return page("Loop", f"{done}, from {plan.model_before(1)}", [*parts, _made_with(plan)], links=links)


def _alarms(rounds: Sequence[RoundFigures], stopped: str | None) -> Markup:
    found = [] if stopped is None else [f"Stopped after round {rounds[-1].round}: {stopped}."]
    found += [
        f"Round {figures.round}: a limit of the judge's budget ended {' and '.join(figures.stopped)} early; the "
        "figures are those of what there is."
        for figures in rounds
        if figures.stopped
    ]
    return alarm("Read this first", found) if found else NOTHING


def _figures(rounds: Sequence[RoundFigures]) -> Markup:
    last = rounds[-1]
    shown = [
        ("rounds", f"{len(rounds)}"),
        ("pairs of all rounds", f"{sum(figures.pairs for figures in rounds):,}"),
        ("win rate of the last round", percent(last.win_rate)),
        ("KL to the first model", _number(last.kl, " nats")),
        ("beta at the end", _number(last.beta_last)),
        ("all of it took", _time(sum(sum(figures.seconds.values()) for figures in rounds))),
    ]
    return section("figures", "What came out", "", key_figures(shown))


def _win_rates(rounds: Sequence[RoundFigures]) -> Markup:
    lines = [
        row(
            f"round {figures.round}",
            f"against {'the first model' if figures.round == 1 else f'round {figures.round - 1}'}",
            interval_bar(
                figures.win_rate,
                figures.win_rate_interval,
                label=f"win rate {percent(figures.win_rate)}, {percent_interval(figures.win_rate_interval)}",
            ),
            percent(figures.win_rate),
            f"({percent_interval(figures.win_rate_interval)})",
        )
        for figures in rounds
    ]
    lead = (
        "How often the judge prefers the output of the model that a round has trained to that of the model it began "
        "with, a tie counting half, on prompts that are never sampled. The line is 50 %."
    )
    return section("win-rates", "Win rate by round", lead, card(rows(*lines, scale=("0 %", "50 %", "100 %"))))


def _by_round(rounds: Sequence[RoundFigures]) -> Markup:
    lines = [
        (
            str(figures.round),
            f"{figures.pairs:,}",
            f"{figures.trained_pairs:,}",
            _number(figures.score),
            _number(figures.gap),
            f"{figures.beta_first:.4g} → {_number(figures.beta_last)}",
            _number(figures.kl, " nats"),
            f"{figures.length_before:.1f} → {figures.length:.1f}",
            percent(figures.unfinished),
        )
        for figures in rounds
    ]
    lead = (
        "Scores are of the answers that the round's rollout sampled, so by the model that it began with. The KL is "
        "estimated on the evaluation's outputs, in nats per output, and only where these are sampled at temperature "
        "1 and top_p 1. Outputs that grow without a gain in quality are a judge's taste for length."
    )
    return section("rounds", "Round by round", lead, card(table(_HEADER, lines)))


def _times(rounds: Sequence[RoundFigures]) -> Markup:
    lines = [
        (str(figures.round), *(_time(figures.seconds.get(name, 0.0)) for name in _STAGES))
        for figures in rounds
    ]
    return section("times", "Time of each stage", "", card(table(("round", *_STAGES), lines)))


def _made_with(plan: LoopPlan) -> Markup:
    return made_with(
        {"loop": {name: getattr(plan.settings, name) for name in plan.settings.__dataclass_fields__}}
    )


def _number(value: float | None, unit: str = "") -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}{unit}"


def _time(seconds: float) -> str:
    """Write a time.

    >>> _time(7.26), _time(200.0), _time(7500.0)
    ('7.3 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
