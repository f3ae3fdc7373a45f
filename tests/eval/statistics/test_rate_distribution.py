"""One distribution for interval and test: what it is by independent computation, and that its two answers agree."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from scipy import stats

from dynamic_dpo.eval.statistics.comparisons import Counts
from dynamic_dpo.eval.statistics.rate_distribution import RateDistribution, _gamma_sum_below_zero
from dynamic_dpo.eval.statistics.win_rate import WinRate, prompts_needed, win_rate
from helpers_judgements import comparison
from helpers_simulation import answers_agree

WON, LOST, TIED = Counts(wins=1), Counts(losses=1), Counts(ties=1)


def single(won: int, lost: int, tied: int = 0) -> WinRate:
    return win_rate(comparison(*[WON] * won, *[LOST] * lost, *[TIED] * tied))


@pytest.mark.parametrize(
    ("won", "lost"), [(1, 1), (3, 1), (8, 2), (21, 11), (60, 40), (150, 150), (900, 700)]
)
def test_one_verdict_a_prompt_gives_quantiles_of_the_beta_distribution(won: int, lost: int) -> None:
    result = single(won, lost)
    low = stats.beta.ppf(0.025, won + 0.25, lost + 0.75)
    high = stats.beta.ppf(0.975, won + 0.75, lost + 0.25)
    assert result.interval == pytest.approx((low, high), abs=1e-9)
    below = stats.beta.cdf(0.5, won + 0.25, lost + 0.75)
    above = stats.beta.sf(0.5, won + 0.75, lost + 0.25)
    assert result.p_value == pytest.approx(min(1.0, 2 * below, 2 * above), abs=1e-11)


def test_several_verdicts_a_prompt_give_what_a_million_draws_give() -> None:
    points, sizes = np.array([4.0, 2.5, 8.0, 1.0, 0.5]), np.array([8.0, 6.0, 8.0, 2.0, 7.0])
    rng, added = np.random.default_rng(0), 6.2
    # The leads are 0, -1, 8, 0 and -6: their step is 1, and a quarter of it is moved within the added prompt.
    weights = rng.standard_exponential((1_000_000, 5))
    ends = []
    for side, won in ((0.025, 0.5 - 0.25 / added), (0.975, 0.5 + 0.25 / added)):
        extra_won, extra_lost = rng.standard_gamma(won, 1_000_000), rng.standard_gamma(1 - won, 1_000_000)
        total = weights @ sizes + added * (extra_won + extra_lost)
        ends.append(float(np.quantile((weights @ points + added * extra_won) / total, side)))
    assert RateDistribution(points, sizes, added=added).interval(0.95) == pytest.approx(ends, abs=2e-3)


def test_a_sum_of_gamma_variables_is_known_far_into_its_tail() -> None:
    # Gamma(a) - Gamma(b) < 0 with the probability that Beta(a, b) lies below a half.
    for a, b in ((1.0, 0.5), (2.5, 7.0), (40.0, 20.0), (300.0, 200.0)):
        found = _gamma_sum_below_zero(np.array([1.0, -1.0]), np.array([a, b]))
        assert found == pytest.approx(stats.beta.cdf(0.5, a, b), abs=1e-11)
    assert _gamma_sum_below_zero(np.array([1.0]), np.array([2000.0])) == 0.0


# One answer


def test_interval_and_test_agree_on_every_small_table_of_single_verdicts() -> None:
    tables = [table for table in product(range(13), range(13), (0, 1, 4)) if sum(table)]
    assert len(tables) == 506
    for table in tables:
        result = single(*table)
        assert answers_agree(result), table
        assert result.interval.low <= result.rate <= result.interval.high, table


def test_interval_and_test_agree_on_every_small_table_of_several_verdicts() -> None:
    outcomes = [
        Counts(wins=2),
        Counts(wins=1, losses=1),
        Counts(losses=2),
        Counts(wins=1, ties=1),
        Counts(wins=1, invalid=1),
        Counts(losses=3, ties=5),
        Counts(invalid=2),
    ]
    tables = [table for size in range(1, 6) for table in combinations_with_replacement(outcomes, size)]
    assert len(tables) == 791
    both = {True: 0, False: 0}
    for table in tables:
        result = win_rate(comparison(*table), confidence=0.8)
        assert answers_agree(result), table
        both[result.p_value < 0.2] += 1
    # The tables are of both kinds, or agreement would say nothing.
    assert min(both.values()) > 100


def test_the_p_value_lies_between_the_mid_p_and_the_exact_sign_test_and_knows_no_ties() -> None:
    for won, lost in product(range(0, 40, 3), repeat=2):
        if won == lost:
            continue
        few, number = min(won, lost), won + lost
        exact = min(1.0, 2 * stats.binom.cdf(few, number, 0.5))
        mid = 2 * stats.binom.cdf(few, number, 0.5) - stats.binom.pmf(few, number, 0.5)
        p_value = single(won, lost).p_value
        # A thousandth: Beta(n + 1/2) is close to the mid-p and not equal to it.
        assert mid - 1e-3 <= p_value <= exact + 1e-9, (won, lost)
        assert single(won, lost, tied=7).p_value == pytest.approx(p_value, abs=1e-10)


def test_the_other_side_gets_the_mirrored_interval_and_the_same_p_value() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        rows = [Counts(*map(int, rng.integers(0, 4, 4))) for _ in range(12)]
        forth = win_rate(comparison(*rows))
        back = win_rate(comparison(*(Counts(c.losses, c.wins, c.ties, c.invalid) for c in rows)))
        assert back.interval == pytest.approx((1 - forth.interval.high, 1 - forth.interval.low), abs=1e-9)
        assert back.p_value == pytest.approx(forth.p_value, abs=1e-10)
        assert back.num_needed == forth.num_needed


def test_what_says_nothing_gives_no_evidence() -> None:
    for outcomes in ([], [Counts(invalid=2)], [TIED] * 5, [Counts(wins=1, losses=1)] * 5):
        result = win_rate(comparison(*outcomes))
        assert result.p_value == 1.0
        assert result.num_needed is None


@pytest.mark.parametrize("num_prompts", [20, 32, 50, 64, 100, 200])
def test_the_test_errs_in_five_of_a_hundred_evaluations_without_a_difference(num_prompts: int) -> None:
    # By enumeration. No test that knows only who won can come closer to 5 % than its neighbouring split allows.
    chance = [stats.binom.pmf(won, num_prompts, 0.5) for won in range(num_prompts + 1)]
    is_found = [single(won, num_prompts - won).p_value < 0.05 for won in range(num_prompts + 1)]
    size = math.fsum(p for p, found in zip(chance, is_found, strict=True) if found)
    next_split = 2 * max(p for p, found in zip(chance, is_found, strict=True) if not found and p < 0.05)
    assert 0.02 < size < 0.0551
    assert size + next_split > 0.05


def test_the_prompts_needed_are_those_of_the_observed_difference() -> None:
    assert single(18, 12).num_needed == prompts_needed(0.1)
    # With half the prompts tied, the spread is sqrt(1/2) / 2 and the difference half as large.
    assert single(18, 12, tied=30).num_needed == prompts_needed(0.05, spread=math.sqrt(0.5) / 2)
    # Four equal verdicts on a prompt are worth one.
    assert win_rate(comparison(*[Counts(wins=4)] * 18, *[Counts(losses=4)] * 12)).num_needed == 194
    shown = single(194 * 6 // 10, 194 - 194 * 6 // 10)
    assert shown.p_value < 0.05
