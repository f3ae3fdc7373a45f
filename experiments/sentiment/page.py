"""The tables: made from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from experiments.pages import p_text, table
from experiments.sentiment.arms import DPO_GRID, GIVEN
from experiments.sentiment.comparison import Results
from experiments.sentiment.runs import START
from experiments.sentiment.statistics import (
    Estimate,
    divergence,
    estimate,
    wins_at_equal_divergence,
    wins_over,
)

from dynamic_dpo.eval.statistics.paired_tests import holm

Line = Mapping[str, Any]
FRONTIER = (START, *(arm.name for arm in DPO_GRID))
SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """An arm against plain DPO at the given beta, and against DPO of the same divergence.

    Attributes:
        reward: Difference of mean reward.
        p_value: Of that difference, with Holm's correction over all of the page.
        equal: Win rate at equal divergence, less one half; ``None`` where a seed's frontier does not reach so far.
        equal_p_value: Of that, likewise.
    """

    reward: Estimate
    p_value: float
    equal: Estimate | None
    equal_p_value: float | None


def compare(results: Results) -> dict[tuple[str, str], Comparison]:
    """Compare all arms but plain DPO, by condition and arm; the correction is over all tests that are made."""
    rewards: dict[tuple[str, str], Estimate] = {}
    equals: dict[tuple[str, str], Estimate] = {}
    for condition, by_arm in results.lines.items():
        for arm, lines in by_arm.items():
            if arm in (GIVEN, START):
                continue
            given = by_arm[GIVEN]
            rewards[condition, arm] = estimate(
                np.array([_rewards(a) - _rewards(b) for a, b in zip(lines, given, strict=True)])
            )
            if arm not in FRONTIER and set(FRONTIER) <= by_arm.keys():
                wins = [
                    wins_at_equal_divergence(line, [by_arm[name][number] for name in FRONTIER])
                    for number, line in enumerate(lines)
                ]
                if all(one is not None for one in wins):
                    equals[condition, arm] = estimate(np.array(wins) - 0.5)
    raw = {"\t".join(("reward", *key)): one.p_value for key, one in rewards.items()}
    raw |= {"\t".join(("equal", *key)): one.p_value for key, one in equals.items()}
    corrected = holm(raw)
    return {
        key: Comparison(
            one,
            corrected["\t".join(("reward", *key))],
            equals.get(key),
            corrected.get("\t".join(("equal", *key))),
        )
        for key, one in rewards.items()
    }


def whole_table(by_arm: Mapping[str, Sequence[Line]], found: Mapping[str, Comparison]) -> str:
    """Return the table of one condition: what each arm's answers are, and how they compare.

    Args:
        by_arm: One line a seed.
        found: Comparisons by arm.
    """
    start = by_arm[START]
    rows = []
    for arm, lines in by_arm.items():
        one = found.get(arm)
        wins = [wins_over(a, b).mean() for a, b in zip(lines, start, strict=True)]
        rows.append(
            [
                arm,
                f"{np.mean([_rewards(line) for line in lines]):.3f}",
                "–" if arm == START else f"{100 * np.mean(wins):.1f}",
                "–" if one is None else _interval(one.reward, one.p_value, "+.3f"),
                f"{np.mean([divergence(line) for line in lines]):.2f}",
                "–" if one is None or one.equal is None else _win_rate(one.equal, one.equal_p_value),
                f"{np.mean([line['words'] for line in lines]):.1f}",
                f"{100 * np.mean([line['repetition'] for line in lines]):.1f}",
                f"{100 * np.mean([line['finished'] for line in lines]):.0f}",
                *(_mean(lines, key, spec) for key, spec in _TRAINING),
            ]
        )
    head = [
        "arm",
        "reward",
        "wins over the start, %",
        "reward against DPO",
        "KL, nats",
        "wins at equal KL, %",
    ]
    head += [
        "words",
        "repetition, %",
        "stopped, %",
        "held-out accuracy, %",
        "chosen, nats a token",
        "last beta",
    ]
    return table(head, rows)


_TRAINING = (("held_out_accuracy", ".1%"), ("chosen_logratio", "+.2f"), ("beta", ".3g"))


def after_training_table(results: Results) -> str:
    """Return what ``keep_best`` and ``strength`` make of plain DPO's runs, by condition."""
    head = [
        "condition",
        "arm",
        "held-out loss",
        "reward",
        "reward by seed",
        "KL, nats",
        "kept step",
        "chosen c",
    ]
    rows = []
    for condition, by_arm in results.lines.items():
        for arm in (GIVEN, "DPO, keep_best", "DPO, strength"):
            lines = by_arm.get(arm)
            if lines is None:
                continue
            rows.append(
                [
                    condition,
                    arm,
                    _mean(lines, "held_out_loss", ".3f"),
                    f"{np.mean([_rewards(line) for line in lines]):.3f}",
                    ", ".join(f"{_rewards(line).mean():.3f}" for line in lines),
                    f"{np.mean([divergence(line) for line in lines]):.2f}",
                    _all(lines, "kept_step"),
                    _all(lines, "strength"),
                ]
            )
    return table(head, rows)


def _rewards(line: Line) -> np.ndarray:
    return np.asarray(line["scores"]).mean(axis=1)


def _mean(lines: Sequence[Line], key: str, spec: str) -> str:
    values = [line[key] for line in lines if line.get(key) is not None]
    return f"{np.mean(values):{spec}}".rstrip("%") if values else "–"


def _all(lines: Sequence[Line], key: str) -> str:
    values = [line[key] for line in lines if line.get(key) is not None]
    return ", ".join(f"{value:g}" for value in values) or "–"


def _interval(one: Estimate, p_value: float, spec: str) -> str:
    mark = ("▲" if one.mean > 0 else "▼") if p_value < SIGNIFICANT else ""
    return f"{one.mean:{spec}} [{one.low:{spec}}, {one.high:{spec}}], p {p_text(p_value)} {mark}".rstrip()


def _win_rate(one: Estimate, p_value: float | None) -> str:
    assert p_value is not None
    mark = ("▲" if one.mean > 0 else "▼") if p_value < SIGNIFICANT else ""
    ends = f"[{50 + 100 * one.low:.1f}, {50 + 100 * one.high:.1f}]"
    return f"{50 + 100 * one.mean:.1f} {ends}, p {p_text(p_value)} {mark}".rstrip()
