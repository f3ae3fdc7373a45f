"""The calibrated test's law: exact for every batch size, and equal to independent computations of it."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.loss.beta_binomial import exceedance_law, exceedance_scores, reference_window

DELTAS = {"0.01": Fraction(1, 100), "0.05": Fraction(1, 20), "0.1": Fraction(1, 10), "0.2": Fraction(1, 5)}


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> None:
    # A trainer in an earlier test has set the process to flush them; drawing floats needs them.
    torch.set_flush_denormal(False)


@pytest.mark.parametrize(("delta", "exact_delta"), DELTAS.items())
def test_the_mean_score_is_zero_and_the_mean_rate_is_delta_for_every_batch_size(
    delta: str, exact_delta: Fraction
) -> None:
    for n in range(1, 513):
        window = reference_window(n, float(delta), 20)
        # An independent search: the first size from 20 n on that has an integer rank.
        size_plus_one = next(
            w for w in range(20 * n, 20 * n + 101) if (w * (1 - exact_delta)).denominator == 1
        )
        assert window == (size_plus_one - 1, size_plus_one * (1 - exact_delta), 0.0)
        law = exceedance_law(n, window.size, window.rank)
        scores = exceedance_scores(n, window.size, window.rank)
        assert math.fsum(law) == pytest.approx(1.0, abs=1e-12)
        rate = math.fsum(p * k for k, p in enumerate(law)) / n
        assert abs(rate - float(delta)) < 1e-10, f"n = {n}"
        assert abs(math.fsum(p * s for p, s in zip(law, scores, strict=True))) < 1e-10, f"n = {n}"
        assert max(map(abs, scores)) <= 1


def test_the_scores_of_sixteen_margins_are_the_published_ones() -> None:
    assert reference_window(16, 0.1, 20) == (319, 288, 0.0)
    scores = exceedance_scores(16, 319, 288)
    assert [round(s, 3) for s in scores[:6]] == [-0.807, -0.288, 0.305, 0.713, 0.907, 0.976]
    assert list(scores) == sorted(scores)


@pytest.mark.parametrize(("n", "size", "rank"), [(1, 9, 9), (7, 20, 3), (16, 319, 288), (512, 10239, 9216)])
def test_the_law_is_scipys_beta_binomial(n: int, size: int, rank: int) -> None:
    expected = betabinom(n, size + 1 - rank, rank).pmf(range(n + 1))
    assert exceedance_law(n, size, rank) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("n", "size", "rank"), [(2, 3, 2), (5, 9, 8), (16, 319, 288)])
def test_the_law_counts_the_orderings_of_old_and_new_margins(n: int, size: int, rank: int) -> None:
    # Exchangeable margins: every placing of the n new ones among all is equally likely. With k new ones above the
    # rank-th old one, n - k lie among the first rank + n - k - 1 places and k among the last size - rank + k.
    placings = math.comb(size + n, n)
    for k, probability in enumerate(exceedance_law(n, size, rank)):
        count = math.comb(rank + n - k - 1, n - k) * math.comb(size - rank + k, k)
        assert probability == pytest.approx(count / placings, rel=1e-12)


@settings(deadline=None, max_examples=80)
@given(n=st.integers(1, 60), size=st.integers(1, 400), share=st.floats(0, 1))
def test_scores_are_fair_for_any_rank(n: int, size: int, share: float) -> None:
    rank = 1 + round(share * (size - 1))
    law, scores = exceedance_law(n, size, rank), exceedance_scores(n, size, rank)
    assert abs(math.fsum(p * s for p, s in zip(law, scores, strict=True))) < 1e-12
    for k, score in enumerate(scores):
        assert score == pytest.approx(math.fsum(law[:k]) - math.fsum(law[k + 1 :]), abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(n=st.integers(1, 512), thousandths=st.integers(1, 999), multiple=st.integers(1, 40))
def test_a_window_has_the_right_mean_rate_for_any_delta(n: int, thousandths: int, multiple: int) -> None:
    delta = thousandths / 1000
    size, rank, chance_above = reference_window(n, delta, multiple)
    assert size + 1 >= multiple * n
    assert 1 <= rank <= rank + (chance_above > 0) <= size
    mean_rank = rank + Fraction(chance_above)
    assert float(1 - mean_rank / (size + 1)) == pytest.approx(delta, abs=1e-12)


def test_an_irregular_delta_draws_its_rank() -> None:
    # 1 - .123 = 877/1000: the next size with an integer rank is 1,000, far beyond 320. 320 × .877 = 280.64.
    size, rank, chance_above = reference_window(16, 0.123, 20)
    assert (size, rank) == (319, 280)
    assert chance_above == pytest.approx(0.64, abs=1e-12)
    # From 20 × 40 = 800 on, 1,000 is near enough to be taken.
    assert reference_window(40, 0.123, 20) == (999, 877, 0.0)


def test_a_delta_taken_at_face_value_is_no_binary_fraction() -> None:
    # .1 is 3602879701896397 / 2^55 in binary, for which no window would do.
    assert reference_window(1, 0.1, multiple=20) == (19, 18, 0.0)


def test_a_tiny_delta_leaves_a_rank_on_either_side() -> None:
    size, rank, chance_above = reference_window(1, 1e-4, multiple=2)
    assert size + 1 == 10_000
    assert (rank, chance_above) == (9_999, 0.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_window_for_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        reference_window(16, delta, 20)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        reference_window(0, 0.1, 20)
    with pytest.raises(ValueError, match="at least 1"):
        reference_window(1, 0.1, multiple=0)
    for n, size, rank in ((0, 9, 1), (1, 9, 0), (1, 9, 10)):
        with pytest.raises(ValueError, match="1 <= rank <= size"):
            exceedance_law(n, size, rank)
