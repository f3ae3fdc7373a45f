"""The weighted win rate: worked by hand, and equal to the published one on what AlpacaEval's judge has said."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics.alpaca_eval.weighted import preferences, weighted_win_rate
from dynamic_dpo.eval.statistics.comparisons import compare
from helpers_judgements import judged


def test_a_judges_weights_are_averaged_and_its_verdicts_are_not() -> None:
    found = [
        judged("p1", "old", "new", "B", prob_first=0.25),
        judged("p2", "old", "new", "A", prob_first=0.75),
        judged("p3", "new", "old", "A", prob_first=1.0),
        judged("p4", "old", "new", "invalid"),
    ]
    # .75, .25 and 1: mean 2/3, standard deviation .3819, over the root of 3.
    result = weighted_win_rate(found, "new", "old")
    assert result.rate == pytest.approx(2 / 3)
    assert result.standard_error == pytest.approx(math.sqrt(7 / 48 / 3))
    assert result.num_prompts == 3
    other = weighted_win_rate(found, "old", "new")
    assert (other.rate, other.standard_error) == (pytest.approx(1 / 3), pytest.approx(result.standard_error))


def test_both_orders_are_averaged_and_a_tie_counts_half() -> None:
    found = [
        judged("p1", "old", "new", "B", prob_first=0.25, prob_tie=0.5),
        judged("p1", "new", "old", "A"),
        judged("p2", "new", "old", "tie"),
    ]
    values = [(found.prompt, found.value, found.num_judgements) for found in preferences(found, "new", "old")]
    # First order: 1 - .25 - .5/2 = .5; second: 1.
    assert values == [("p1", 0.75, 2), ("p2", 0.5, 1)]
    assert weighted_win_rate(found, "new", "old").rate == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_without_probabilities_it_is_the_win_rate_of_verdicts() -> None:
    found = [judged(f"p{n}", "old", "new", verdict) for n, verdict in enumerate(["A", "B", "B", "tie"])]
    assert weighted_win_rate(found, "new", "old").rate == compare(found, "new", "old").counts.rate == 0.625


def test_judgements_of_one_prompt_are_worth_no_more_prompts() -> None:
    once = [judged(f"p{n}", "old", "new", "AB"[n % 2]) for n in range(10)]
    twice = once + [judged(f"p{n}", "old", "new", "AB"[n % 2], sample=1) for n in range(10)]
    alone = weighted_win_rate(once, "new", "old")
    assert weighted_win_rate(twice, "new", "old") == pytest.approx(alone)
    assert alone.standard_error == pytest.approx(0.5 * math.sqrt(10 / 9) / math.sqrt(10))


def test_one_prompt_has_no_standard_error_and_none_is_refused() -> None:
    found = [judged("p1", "old", "new", "B")]
    assert math.isnan(weighted_win_rate(found, "new", "old").standard_error)
    with pytest.raises(DataError, match="no valid judgement between 'other' and 'old'"):
        weighted_win_rate(found, "other", "old")


def test_published_weighted_win_rates_and_standard_errors_come_out(shared_folder: Path) -> None:
    folder = shared_folder / "data" / "alpacaeval"
    records: dict[str, list[JudgementRecord]] = {}
    with gzip.open(folder / "annotations.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            weight = float(row["preference"])
            verdict = "tie" if weight == 1.5 else "B" if weight > 1.5 else "A"
            records.setdefault(row["model"], []).append(
                judged(row["instruction"], "baseline", "model", verdict, prob_first=2 - weight)
            )
    with (folder / "leaderboard.csv").open(encoding="utf-8") as file:
        published = {row["model"]: row for row in csv.DictReader(file)}
    assert sorted(records) == sorted(published)
    for model, found in records.items():
        result = weighted_win_rate(found, "model", "baseline")
        assert 100 * result.rate == pytest.approx(float(published[model]["win_rate"]), abs=0.01)
        assert 100 * result.standard_error == pytest.approx(
            float(published[model]["standard_error"]), abs=0.01
        )
        discrete = compare(found, "model", "baseline").counts.rate
        assert 100 * discrete == pytest.approx(float(published[model]["discrete_win_rate"]), abs=0.01)
