"""Paired tests, position bias, agreement, length control, Bradley-Terry and the metrics of implicit rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.multitest import multipletests

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.scoring.metrics import (
    FrontierPoint,
    reward_kl_frontier,
    sequence_kl,
    summarise_margins,
)
from dynamic_dpo.eval.statistics.agreement import _kappa_interval, judge_agreement
from dynamic_dpo.eval.statistics.bradley_terry import bradley_terry
from dynamic_dpo.eval.statistics.comparisons import Comparison, Counts
from dynamic_dpo.eval.statistics.length_control import CAVEAT, length_controlled_win_rate
from dynamic_dpo.eval.statistics.paired_tests import holm, mcnemar_test
from dynamic_dpo.eval.statistics.position_bias import position_bias
from helpers_judgements import comparison, judged, width

WON, LOST, TIED = Counts(wins=1), Counts(losses=1), Counts(ties=1)


# Paired tests


def test_nothing_decided_is_no_evidence() -> None:
    assert mcnemar_test(comparison(TIED), comparison(TIED)).p_value == 1.0


def test_mcnemar_looks_only_at_prompts_where_two_methods_differ() -> None:
    # Both win 40 prompts, only the first wins 9, only the second 2: binomial with 11 trials.
    one = comparison(*[WON] * 49, *[LOST] * 12)
    two = comparison(*[WON] * 40, *[LOST] * 9, *[WON] * 2, *[LOST] * 10)
    result = mcnemar_test(one, two)
    assert (result.better, result.worse, result.equal) == (9, 2, 50)
    assert result.p_value == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_mcnemar_needs_one_baseline() -> None:
    with pytest.raises(DataError, match="one baseline and one judge"):
        mcnemar_test(comparison(WON), Comparison("other", "older", "judge", {"p0000": WON}))


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_keeps_the_order() -> None:
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.9, "b": 0.02})
    assert adjusted == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.9, "b": 0.06})
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert holm({}) == {}


def test_holm_is_statsmodels_holm() -> None:
    p_values = {str(n): float(p) for n, p in enumerate(np.random.default_rng(0).beta(0.3, 2.0, 25))}
    expected = multipletests(list(p_values.values()), method="holm")[1]
    assert list(holm(p_values).values()) == pytest.approx(list(expected))


# Position bias


def test_orders_that_contradict_each_other_are_told_from_those_that_do_not() -> None:
    def both(prompt: str, one: str, two: str) -> list[JudgementRecord]:
        return [judged(prompt, "new", "old", one), judged(prompt, "old", "new", two)]

    asked = [
        *both("consistent", "A", "B"),
        *both("two ties", "tie", "tie"),
        *both("half", "A", "tie"),
        *both("first twice", "A", "A"),
        *both("second twice", "B", "B"),
        *both("one is invalid", "A", "invalid"),
        judged("one order", "new", "old", "A"),
    ]
    bias = position_bias(asked, "judge")
    assert (bias.num_pairs, bias.consistent, bias.half, bias.flipped) == (5, 2, 1, 2)
    assert (bias.flip_rate, bias.consistency) == (2 / 5, 2 / 5)
    assert (bias.first, bias.second, bias.first_share) == (6, 3, 6 / 9)
    assert bias.first_interval.low < 6 / 9 < bias.first_interval.high


def test_without_both_orders_there_is_no_flip_rate() -> None:
    bias = position_bias([judged("p", "new", "old", "tie")], "judge")
    assert math.isnan(bias.flip_rate)
    assert math.isnan(bias.consistency)
    assert math.isnan(bias.first_share)


# Agreement


def test_kappa_is_what_cohen_computed_by_hand() -> None:
    # Of 10 questions: 5 times both say new, 3 times both old, twice they differ. Raw 0.8, by chance
    # 0.6 * 0.6 + 0.4 * 0.4 = 0.52: kappa = (0.8 - 0.52) / (1 - 0.52) = 0.5833.
    one, two = "AAAAAABBBB", "AAAAABABBB"
    judgements = [
        judged(f"p{n}", "new", "old", verdict, judge=name)
        for name, verdicts in (("one", one), ("two", two))
        for n, verdict in enumerate(verdicts)
    ]
    (result,) = judge_agreement(judgements)
    assert (result.judges, result.num_questions, result.raw) == (("one", "two"), 10, 0.8)
    assert result.kappa == pytest.approx(0.28 / 0.48)


def test_judges_asked_in_different_orders_can_agree() -> None:
    judgements = [
        judged("p", "new", "old", "A", judge="one"),
        judged("p", "old", "new", "B", judge="two"),
        judged("q", "new", "old", "B", judge="one"),
        judged("q", "new", "old", "A", judge="two"),
        judged("q", "old", "new", "A", judge="two"),
        judged("only one", "new", "old", "A", judge="one"),
        judged("only one", "new", "old", "invalid", judge="two"),
    ]
    (result,) = judge_agreement(judgements)
    assert (result.num_questions, result.num_left_out, result.raw) == (2, 1, 0.5)


def test_agreement_without_anything_to_disagree_about_has_no_kappa() -> None:
    same = [judged(f"p{n}", "new", "old", "A", judge=judge) for n in range(3) for judge in ("one", "two")]
    assert judge_agreement(same)[0].raw == 1.0
    assert math.isnan(judge_agreement(same)[0].kappa)
    apart = [judged("p", "new", "old", "A", judge="one"), judged("q", "new", "old", "A", judge="two")]
    assert (judge_agreement(apart)[0].num_questions, judge_agreement(apart)[0].num_left_out) == (0, 2)
    assert judge_agreement(same[::2]) == []


def test_kappa_is_that_of_scikit_learn_and_its_interval_leaves_room() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.choice(list("AB"), 50), rng.choice(["A", "B", "tie"], 50)
    two = np.where(rng.random(50) < 0.5, one, two)
    judgements = [
        judged(f"p{n}", "new", "old", str(verdict), judge=name)
        for name, verdicts in (("one", one), ("two", two))
        for n, verdict in enumerate(verdicts)
    ]
    (result,) = judge_agreement(judgements)
    assert result.kappa == pytest.approx(cohen_kappa_score(one, two), abs=1e-12)
    assert result.kappa_interval.low < result.kappa < result.kappa_interval.high
    (surer,) = judge_agreement(judgements, confidence=0.5)
    assert width(surer.kappa_interval) < width(result.kappa_interval)
    agreed = [replace(r, verdict="AB"[int(r.id[1:]) % 2]) for r in judgements]
    (full,) = judge_agreement(agreed)
    assert full.kappa == 1.0
    assert 0.8 < full.kappa_interval.low < full.kappa_interval.high <= 1.0
    (single,) = judge_agreement([judged("p", "new", "old", "A", judge=judge) for judge in ("one", "two")])
    assert single.kappa_interval == (-1.0, 1.0)


def kappa_coverage(num_prompts: int, agreement: float, tie: float, size: int, num_evaluations: int) -> float:
    """Two judges of whom the second follows the first in a share of questions: that share is the true kappa."""
    rng, covered = np.random.default_rng(num_prompts), 0
    for _ in range(num_evaluations):
        base = [0.6 * (1 - tie), tie, 0.4 * (1 - tie)]
        one = rng.choice(3, (num_prompts, size), p=base)
        two = np.where(rng.random(one.shape) < agreement, one, rng.choice(3, one.shape, p=base))
        is_valid = rng.random(one.shape) < 0.9
        tables = np.zeros((num_prompts, 3, 3))
        rows = np.broadcast_to(np.arange(num_prompts)[:, None], one.shape)
        np.add.at(tables, (rows[is_valid], one[is_valid], two[is_valid]), 1)
        low, high = _kappa_interval(tables[tables.sum((1, 2)) > 0], 0.95)
        covered += low <= agreement <= high
    return covered / num_evaluations


@pytest.mark.parametrize(("num_prompts", "agreement", "tie", "size"), [(32, 0.8, 0.3, 1), (100, 0.4, 0.0, 4)])
def test_the_interval_of_kappa_covers_it(num_prompts: int, agreement: float, tie: float, size: int) -> None:
    assert 0.925 <= kappa_coverage(num_prompts, agreement, tie, size, 400) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [32, 100, 300])
@pytest.mark.parametrize("agreement", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("tie", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 4])
def test_the_interval_of_kappa_covers_it_in_93_to_97_of_100_evaluations(
    num_prompts: int, agreement: float, tie: float, size: int
) -> None:
    # Known to 0.7 points.
    assert 0.923 <= kappa_coverage(num_prompts, agreement, tie, size, 1000) <= 0.977


# Length control


def written(prompt: str, model: str, length: int, sample: int = 0) -> OutputRecord:
    return OutputRecord(prompt, model, sample, "x" * length, num_tokens=0, finished=True)


def length_biased(
    num_prompts: int, *, quality: float, effect: float, seed: int
) -> tuple[list[JudgementRecord], list[OutputRecord]]:
    """A judge whose log-odds for "new" are quality + effect * tanh(standardised length difference)."""
    rng = np.random.default_rng(seed)
    own = rng.integers(300, 700, num_prompts)
    other = rng.integers(100, 500, num_prompts)
    x = np.tanh((own - other) / (own - other).std(ddof=1))
    wins = rng.random(num_prompts) < 1 / (1 + np.exp(-(quality + effect * x)))
    judgements = [judged(f"p{n:04d}", "new", "old", "A" if won else "B") for n, won in enumerate(wins)]
    outputs = [written(f"p{n:04d}", "new", int(k)) for n, k in enumerate(own)]
    return judgements, outputs + [written(f"p{n:04d}", "old", int(k)) for n, k in enumerate(other)]


def test_the_fit_is_the_logistic_regression_of_statsmodels() -> None:
    judgements, outputs = length_biased(400, quality=-0.5, effect=1.5, seed=1)
    result = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=100)
    texts = {(output.id, output.model): len(output.text) for output in outputs}
    longer = np.array([texts[r.id, "new"] - texts[r.id, "old"] for r in judgements], dtype=float)
    design = sm.add_constant(np.tanh(longer / longer.std(ddof=1)))
    reference = sm.GLM([r.verdict == "A" for r in judgements], design, family=sm.families.Binomial()).fit()
    # The prior of a hundredth of a prompt moves nothing by more than this.
    assert result.length_effect == pytest.approx(reference.params[1], abs=1e-3)
    assert result.rate == pytest.approx(1 / (1 + math.exp(-reference.params[0])), abs=1e-3)


def test_a_model_that_wins_by_length_alone_is_no_better_at_equal_length() -> None:
    judgements, outputs = length_biased(800, quality=0.0, effect=2.0, seed=2)
    result = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=400)
    assert result.raw_rate > 0.65
    assert result.interval.low < 0.5 < result.interval.high
    assert result.length_effect == pytest.approx(2.0, abs=0.5)
    assert (result.mean_length, result.baseline_mean_length) == pytest.approx((500, 300), abs=15)


def test_swapping_the_models_mirrors_the_controlled_rate() -> None:
    judgements, outputs = length_biased(200, quality=0.4, effect=1.0, seed=3)
    forth = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=100)
    back = length_controlled_win_rate(judgements, outputs, "old", "new", num_resamples=100)
    assert forth.rate + back.rate == pytest.approx(1.0, abs=1e-9)
    assert forth.length_effect == pytest.approx(back.length_effect, abs=1e-9)


@pytest.mark.parametrize("lengths", [(100, 100), (200, 100)])
def test_equal_length_differences_leave_the_plain_win_rate(lengths: tuple[int, int]) -> None:
    judgements = [judged(f"p{n}", "new", "old", "A" if n < 20 else "B") for n in range(32)]
    outputs = [
        written(f"p{n}", name, k) for n in range(32) for name, k in zip(("new", "old"), lengths, strict=True)
    ]
    result = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=200)
    assert result.rate == pytest.approx(20 / 32, abs=1e-3)
    assert result.length_effect == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("verdict_of_longer", ["A", None])
def test_a_fit_that_would_run_off_stays_finite(verdict_of_longer: str | None) -> None:
    """Every longer output wins, or the model wins everything: the likelihood has no maximum."""
    judgements, outputs = [], []
    for n in range(32):
        is_longer = n % 2 == 0
        verdict = "A" if verdict_of_longer is None or is_longer else "B"
        judgements.append(judged(f"p{n}", "new", "old", verdict))
        outputs += [written(f"p{n}", "new", 300 if is_longer else 100), written(f"p{n}", "old", 200)]
    result = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=200)
    assert math.isfinite(result.length_effect)
    assert 0.0 < result.rate < 1.0
    assert width(result.interval) > 0.01


def test_orders_and_samples_enter_the_fit_as_shares_of_a_prompt() -> None:
    judgements = [
        judged(f"p{n}", *pair, verdict, sample=sample)
        for n in range(16)
        for sample in (0, 1)
        for pair, verdict in ((("new", "old"), "A"), (("old", "new"), "tie" if n % 2 else "B"))
    ]
    outputs = [
        written(f"p{n}", name, 100 + 7 * n + (name == "new") * 11 * sample, sample)
        for n in range(16)
        for sample in (0, 1)
        for name in ("new", "old")
    ]
    result = length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=100)
    assert result.num_prompts == 16
    assert result.raw_rate == (16 + 0.5 * 8 + 8) / 32  # Half of the 16 second orders are ties.


def test_length_control_never_passes_for_alpacaevals_number() -> None:
    judgements, outputs = length_biased(20, quality=0.0, effect=0.0, seed=4)
    assert length_controlled_win_rate(judgements, outputs, "new", "old", num_resamples=100).caveat == CAVEAT
    assert CAVEAT.startswith("Not AlpacaEval's length-controlled win rate")


def test_questions_without_their_texts_are_left_out_and_counted() -> None:
    judgements, outputs = length_biased(20, quality=0.0, effect=0.0, seed=4)
    result = length_controlled_win_rate(judgements, outputs[1:], "new", "old", num_resamples=100)
    assert (result.num_prompts, result.num_left_out) == (19, 1)
    with pytest.raises(DataError, match="20 have not"):
        length_controlled_win_rate(judgements, outputs[:20], "new", "old")


# Bradley-Terry


def tournament(strengths: dict[str, float], num_prompts: int, seed: int) -> list[JudgementRecord]:
    rng = np.random.default_rng(seed)
    return [
        judged(f"p{n:04d}", one, two, "A" if rng.random() < 1 / (1 + math.exp(b - a)) else "B")
        for n in range(num_prompts)
        for (one, a), (two, b) in combinations(strengths.items(), 2)
    ]


def test_known_strengths_are_found_again() -> None:
    true = {"strong": 1.0, "middle": 0.2, "weak": -1.2}
    result = bradley_terry(tournament(true, 400, seed=5), num_resamples=300)
    assert [row.name for row in result.models] == ["strong", "middle", "weak"]
    for row in result.models:
        assert row.strength == pytest.approx(true[row.name], abs=0.2)
        assert row.interval.low < true[row.name] < row.interval.high
        assert 0.1 < width(row.interval) < 0.5
    assert sum(row.strength for row in result.models) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [32, 100])
def test_intervals_of_strengths_hold_the_truth(num_prompts: int) -> None:
    true, held = {"strong": 0.6, "middle": 0.0, "weak": -0.6}, 0
    for seed in range(400):
        result = bradley_terry(tournament(true, num_prompts, seed), num_resamples=500, seed=seed)
        held += sum(row.interval.low <= true[row.name] <= row.interval.high for row in result.models)
    # 95 %; three strengths of one tournament hang together, so that 1,200 count like some 600.
    assert 0.93 <= held / 1200 <= 0.975


def test_strengths_are_those_of_a_logistic_regression() -> None:
    judgements = tournament({"a": 0.5, "b": 0.0, "c": -0.5}, 60, seed=6)
    rows, won = [], []
    for record in judgements:
        rows.append([(name == record.first) - (name == record.second) for name in "abc"])
        won.append(float(record.verdict == "A"))
    for one, two in combinations("abc", 2):  # The added prompt of every pair: half won, half lost.
        rows.append([(name == one) - (name == two) for name in "abc"])
        won.append(0.5)
    fit = sm.GLM(won, np.array(rows)[:, :2] - np.array(rows)[:, 2:], family=sm.families.Binomial()).fit()
    expected = {"a": fit.params[0], "b": fit.params[1], "c": -fit.params.sum()}
    found = {row.name: row.strength for row in bradley_terry(judgements, num_resamples=100).models}
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_model_that_wins_everything_has_a_finite_strength_and_a_note() -> None:
    judgements = tournament({"best": 50.0, "b": 0.0, "c": 0.0}, 20, seed=7)
    result = bradley_terry(judgements, num_resamples=200)
    assert math.isfinite(result.models[0].interval.high)
    assert result.models[0].name == "best"
    assert any(note.startswith("best lost nothing") for note in result.notes)


def test_models_that_never_met_are_not_put_in_one_order() -> None:
    judgements = [judged(f"p{n}", *pair, "A") for n in range(5) for pair in (("a", "b"), ("c", "d"))]
    result = bradley_terry(judgements, num_resamples=100)
    assert result.num_groups == 2
    assert {row.name: row.group for row in result.models} == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert any("2 groups" in note and "a, b; c, d" in note for note in result.notes)


def test_bradley_terry_needs_three_models_and_one_judge() -> None:
    with pytest.raises(DataError, match="got 2"):
        bradley_terry([judged("p", "a", "b", "A")])
    judgements = [
        judged("p", "a", "b", "A"),
        judged("p", "b", "c", "A", judge="other"),
    ]
    with pytest.raises(DataError, match="2 judges"):
        bradley_terry(judgements)


# Implicit rewards, KL, frontier


def test_a_margin_of_zero_ranks_a_pair_neither_right_nor_wrong() -> None:
    summary = summarise_margins([3.0, 1.0, 0.0, -1.0, math.nan], beta=0.5)
    assert (summary.num_pairs, summary.num_not_finite) == (4, 1)
    assert summary.accuracy == 2.5 / 4
    assert (summary.mean_margin, summary.median_margin, summary.reward_margin) == (0.75, 0.5, 0.375)
    assert summary.margin_error == pytest.approx(math.sqrt((2.25**2 + 0.25**2 + 0.75**2 + 1.75**2) / 3 / 4))
    assert summarise_margins([1.0]).reward_margin is None
    with pytest.raises(DataError, match="none is finite"):
        summarise_margins([math.nan])


def test_both_kl_estimators_find_the_kl_of_two_gaussians() -> None:
    # KL(N(0.5, 1) || N(0, 1)) = 0.125 nats.
    sampled = np.random.default_rng(0).normal(0.5, 1.0, 100_000)
    kl = sequence_kl(stats.norm(0.5).logpdf(sampled), stats.norm(0.0).logpdf(sampled))
    assert kl.k1 == pytest.approx(0.125, abs=4 * kl.k1_error)
    assert kl.k3 == pytest.approx(0.125, abs=4 * kl.k3_error)
    assert kl.k3_error < kl.k1_error
    assert 0 < kl.effective_size < kl.num_sequences == 100_000


def test_k3_is_never_negative_and_huge_log_ratios_warn_by_the_effective_size() -> None:
    assert sequence_kl([-10.0, -12.0], [-9.0, -12.5]).k3 > 0
    far = sequence_kl([-900.0, -10.0], [-100.0, -10.0])
    assert far.effective_size == pytest.approx(1.0)
    assert far.k3 == far.k3_error == math.inf


@pytest.mark.parametrize(
    ("policy", "reference", "message"),
    [([1.0], [1.0, 2.0], "got 1"), ([], [], "got 0"), ([math.nan], [0.0], "1 of 1")],
)
def test_log_probabilities_that_do_not_fit_are_refused(
    policy: list[float], reference: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sequence_kl(policy, reference)


def test_the_frontier_marks_what_no_other_checkpoint_beats() -> None:
    points = [
        FrontierPoint("far and poor", 5.0, 0.4),
        FrontierPoint("near", 1.0, 0.5),
        FrontierPoint("far and good", 4.0, 0.7),
        FrontierPoint("same as near", 1.0, 0.5),
    ]
    marked = {point.name: point.is_efficient for point in reward_kl_frontier(points)}
    assert marked == {"near": True, "same as near": True, "far and good": True, "far and poor": False}
    with pytest.raises(DataError, match="'bad'"):
        reward_kl_frontier([FrontierPoint("bad", math.nan, 0.0)])
