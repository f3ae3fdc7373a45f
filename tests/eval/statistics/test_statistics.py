"""Win rates: counting, the definition, and whether the intervals keep what they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics import resampling
from dynamic_dpo.eval.statistics.comparisons import Counts, compare, distinct, model_pairs
from dynamic_dpo.eval.statistics.win_rate import (
    WinRate,
    prompts_needed,
    wilson_interval,
    win_rate,
    win_rate_by_category,
)
from helpers_judgements import comparison, judged, width
from helpers_simulation import SimulatedJudge, cells, simulated

# Counting


def test_orders_and_samples_of_a_prompt_are_counted_together() -> None:
    judgements = [
        judged("p1", "new", "old", "A"),
        judged("p1", "old", "new", "A"),
        judged("p1", "new", "old", "tie", sample=1),
        judged("p1", "old", "new", "B", sample=1),
        judged("p2", "old", "new", "invalid"),
    ]
    result = compare(judgements, "new", "old")
    assert result.by_prompt == {
        "p1": Counts(wins=2, losses=1, ties=1, invalid=0),
        "p2": Counts(invalid=1),
    }
    assert result.counts == Counts(wins=2, losses=1, ties=1, invalid=1)
    assert result.prompts == Counts(wins=1, losses=0, ties=0, invalid=1)


def test_a_judge_that_always_prefers_the_first_leaves_a_tied_prompt_and_half_the_points() -> None:
    result = compare([judged("p", "new", "old", "A"), judged("p", "old", "new", "A")], "new", "old")
    assert result.counts.rate == 0.5
    assert result.prompts == Counts(ties=1)


def test_the_other_side_of_a_comparison_has_the_other_counts() -> None:
    judgements = [judged(f"p{n}", "new", "old", verdict) for n, verdict in enumerate("AABAA")]
    forth, back = compare(judgements, "new", "old"), compare(judgements, "old", "new")
    assert (forth.counts.wins, forth.counts.losses) == (4, 1) == (back.counts.losses, back.counts.wins)
    assert forth.counts.rate + back.counts.rate == 1.0


def test_the_order_of_the_judgements_changes_nothing() -> None:
    judgements = [judged(f"p{n}", "new", "old", "ABAAB"[n % 5]) for n in range(20)]
    assert compare(judgements[::-1], "new", "old") == compare(judgements, "new", "old")
    assert list(compare(judgements[::-1], "new", "old").by_prompt) == sorted({r.id for r in judgements})


def test_a_question_written_down_twice_counts_once() -> None:
    record = judged("p", "new", "old", "A")
    assert compare([record, replace(record, verdict="B")], "new", "old").counts == Counts(wins=1)


def test_equal_outputs_of_two_samples_share_a_key_and_count_twice() -> None:
    record = judged("p", "new", "old", "A")
    assert compare([record, replace(record, sample=1)], "new", "old").counts == Counts(wins=2)


def test_other_models_and_judges_are_passed_over() -> None:
    judgements = [
        judged("p", "new", "old", "A"),
        judged("p", "new", "third", "B"),
        judged("p", "new", "old", "B", judge="other"),
    ]
    assert compare(judgements, "new", "old", judge="judge").counts == Counts(wins=1)
    assert compare(judgements, "old", "third", judge="judge").counts == Counts()


def test_two_judges_are_not_pooled_in_silence() -> None:
    judgements = [judged("p", "new", "old", "A"), judged("p", "new", "old", "B", judge="other")]
    with pytest.raises(DataError, match=r"2 judges \(judge, other\)"):
        compare(judgements, "new", "old")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (judged("p", "new", "old", "C"), "verdict 'C'"),
        (judged("p", "new", "new", "A"), "with itself"),
    ],
)
def test_an_unreadable_judgement_is_refused_by_name(record: JudgementRecord, message: str) -> None:
    with pytest.raises(DataError, match=message):
        distinct([record])


def test_a_model_is_not_compared_with_itself() -> None:
    with pytest.raises(DataError, match="with itself"):
        compare([], "new", "new")


def test_pairs_put_the_baseline_second_and_first_in_the_list() -> None:
    judgements = [judged("p", *pair, "A") for pair in [("a", "b"), ("z", "a"), ("b", "base"), ("base", "a")]]
    assert model_pairs(judgements, baseline="base") == [("a", "base"), ("b", "base"), ("b", "a"), ("z", "a")]


# The definition


def test_the_win_rate_counts_a_tie_as_half_and_an_invalid_verdict_not_at_all() -> None:
    outcomes = [Counts(wins=1)] * 5 + [Counts(losses=1)] * 3 + [Counts(ties=1)] * 2 + [Counts(invalid=1)] * 7
    result = win_rate(comparison(*outcomes))
    assert result.rate == (5 + 2 / 2) / (5 + 3 + 2)
    assert result.decisive == 5 / (5 + 3)
    assert (result.counts.ties, result.counts.invalid, result.num_prompts) == (2, 7, 10)


def test_repeating_every_verdict_four_times_does_not_make_it_surer() -> None:
    once = win_rate(comparison(*[Counts(wins=1)] * 20, *[Counts(losses=1)] * 12))
    fourfold = win_rate(comparison(*[Counts(wins=4)] * 20, *[Counts(losses=4)] * 12))
    assert fourfold.interval == pytest.approx(once.interval, abs=1e-9)
    assert fourfold.decisive_interval == pytest.approx(once.decisive_interval, abs=1e-9)
    assert fourfold.p_value == pytest.approx(once.p_value, abs=1e-9)


@pytest.mark.parametrize("verdicts", [1, 8])
def test_winning_everything_leaves_room_for_doubt(verdicts: int) -> None:
    result = win_rate(comparison(*[Counts(wins=verdicts)] * 32))
    assert result.rate == result.decisive == result.decisive_interval.high == 1.0
    # 32 wins of 32: true rates down to 0.92 give that in 7 % of all cases.
    assert 0.88 < result.interval.low < 0.95
    assert 0.88 < result.decisive_interval.low < 0.95


def test_without_a_valid_verdict_nothing_is_known() -> None:
    for outcomes in ([], [Counts(invalid=2)]):
        result = win_rate(comparison(*outcomes))
        assert math.isnan(result.rate)
        assert math.isnan(result.decisive)
        assert result.interval == result.decisive_interval == (0.0, 1.0)


def test_a_single_prompt_judged_often_is_one_prompt() -> None:
    result = win_rate(comparison(Counts(wins=60, losses=40)))
    assert result.interval.low < 0.1
    assert width(result.decisive_interval) > 0.7


def test_more_confidence_needs_more_width() -> None:
    outcomes = comparison(*[Counts(wins=1)] * 21, *[Counts(losses=1)] * 11)
    assert width(win_rate(outcomes, confidence=0.99).interval) > width(win_rate(outcomes).interval)


def test_blocks_of_resamples_give_what_one_block_gives_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "BLOCK_NUMBERS", 640)
    blocks = list(resampling.resample(32, num_resamples=50, seed=0))
    assert [len(block.prompts) for block in blocks] == [20, 20, 10]
    assert [len(block.won) for block in blocks] == [20, 20, 10]


def test_settings_that_give_no_interval_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 95"):
        win_rate(comparison(Counts(wins=1)), confidence=95)
    with pytest.raises(ConfigError, match="at least 100 resamples"):
        resampling.check_settings(confidence=0.95, num_resamples=10)


def test_wilsons_interval_stays_inside_and_knows_nothing_without_trials() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5).low == 0.0
    assert wilson_interval(5, 5).high == 1.0


def test_categories_are_judged_on_their_own_prompts() -> None:
    outcomes = comparison(Counts(wins=1), Counts(losses=1), Counts(wins=1), Counts(ties=1))
    by_category = win_rate_by_category(outcomes, {"p0000": "help", "p0002": "help", "p0001": "harm"})
    assert {name: result.rate for name, result in by_category.items()} == {"harm": 0.0, "help": 1.0}
    assert [result.num_prompts for result in by_category.values()] == [1, 2]


# Known answers


def test_a_judge_with_known_habits_is_measured_to_have_them() -> None:
    judge = SimulatedJudge(0.6, bias=0.2, tie=0.1, invalid=0.05)
    rows = judge.verdicts(np.random.default_rng(1), 20_000, 1, both_orders=True)
    counts = Counts(*(int(n) for n in rows.sum(axis=0)))
    total = counts.num_valid + counts.invalid
    assert counts.invalid / total == pytest.approx(0.05, abs=0.005)
    assert counts.ties / counts.num_valid == pytest.approx(0.10, abs=0.005)
    # Both orders cancel the bias: 0.9 * 0.6 + 0.1 / 2.
    assert counts.rate == pytest.approx(0.59, abs=0.01)


@pytest.mark.parametrize(
    "cell",
    [
        (32, "1 output, one order", 0.7, 0.3),
        (32, "1 output, both orders", 0.5, 0.3),
        (100, "4 outputs, both orders", 0.7, 0.0),
    ],
)
def test_intervals_hold_the_truth_and_never_contradict_the_test(cell: tuple[int, str, float, float]) -> None:
    kept = simulated(cell, num_evaluations=400)
    # 400 evaluations know a share of 95 % to 1.1 points.
    assert 0.925 <= kept.rate <= 0.98
    assert 0.925 <= kept.decisive <= 0.98
    assert kept.contradicted == 0
    assert (kept.found < 0.08) == (cell[2] == 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells()))
def test_intervals_keep_their_promise_in_93_to_97_of_100_evaluations(
    cell: tuple[int, str, float, float],
) -> None:
    kept = simulated(cell)
    assert 0.93 <= kept.rate <= 0.97
    assert 0.93 <= kept.decisive <= 0.975
    assert kept.contradicted == 0
    if cell[2] == 0.5:
        # 1,000 evaluations know a share of 5 % to 0.7 points.
        assert kept.found <= 0.05 + 3 * 0.007


def test_the_prompts_that_a_difference_needs_show_it_in_four_of_five_evaluations() -> None:
    # 2,181 prompts, true rate 53 %, one verdict each: how often Jeffreys' interval leaves out a half.
    wins = np.random.default_rng(3).binomial(prompts_needed(0.03), 0.53, 20_000)
    low = stats.beta.ppf(0.025, wins + 0.5, prompts_needed(0.03) - wins + 0.5)
    assert (low > 0.5).mean() == pytest.approx(0.8, abs=0.01)
    assert prompts_needed(0.03, power=0.9) > prompts_needed(0.03) > prompts_needed(0.04)
    with pytest.raises(ConfigError, match=r"got 3, 0\.5"):
        prompts_needed(3)


def test_a_win_rate_names_whom_it_is_about() -> None:
    result: WinRate = win_rate(comparison(Counts(wins=1)))
    assert (result.model, result.baseline, result.judge, result.confidence) == ("new", "old", "judge", 0.95)
