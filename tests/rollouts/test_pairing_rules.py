"""The pairing rules: numbers worked by hand, what holds for all of them, and how often they are right by theory."""

from __future__ import annotations

import math
import random
import statistics
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.filters import PAIR_FILTERS
from dynamic_dpo.rollouts.pairing_rules import RULES, Proposed, Task
from dynamic_dpo.rollouts.pairs import pairs_of
from dynamic_dpo.rollouts.plan import PromptSource, RolloutPlan, Scoring
from dynamic_dpo.rollouts.settings import PairingSettings, RuleName
from helpers_rollouts import scoring

SCORES = [0.2, 1.0, -3.0, 0.4, 0.6]


def answers_with(scores: list[float], *, texts: list[str] | None = None) -> list[Answer]:
    texts = texts or [f"answer number {n} with score {score}" for n, score in enumerate(scores)]
    return [
        Answer("policy", n, text, score=score)
        for n, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]


def proposed(rule: str, answers: list[Answer], **settings: object) -> list[tuple[int, int]]:
    task = Task("p", answers, PairingSettings(rule=rule, **settings))  # type: ignore[arg-type]
    return [(pair.chosen.sample, pair.rejected.sample) for pair in RULES[rule](task)]


def plan_with(tmp_path, rule: str = "auto", *, num_samples: int = 4, **settings):
    return RolloutPlan(
        tmp_path / "out",
        PromptSource({"name": "x"}),
        ModelSpec("policy", "m"),
        GenerationSettings(num_samples=num_samples),
        Scoring({"number": scoring()}),
        PairingSettings(rule=rule, **settings),
    )


def test_every_rule_has_a_name_in_files() -> None:
    assert {"auto", *RULES} == set(get_args(RuleName))


def test_best_worst_takes_the_ends() -> None:
    assert proposed("best_worst", answers_with(SCORES)) == [(1, 2)]


def test_best_mu2sigma_takes_the_answer_nearest_to_the_mean_less_two_deviations() -> None:
    # 9 × 1, 9 × 0 and one -5: mean 4/19 = 0.21, deviation 1.29, target -2.37: 0 is 2.37 away, -5 2.63.
    scores = [1.0] * 9 + [0.0] * 9 + [-5.0]
    assert proposed("best_mu2sigma", answers_with(scores))[0][1] in range(9, 18)
    # Mean -0.16, deviation 1.446, target -3.05: the worst is nearest.
    assert proposed("best_mu2sigma", answers_with(SCORES)) == [(1, 2)]


def test_auto_is_best_mu2sigma_from_eight_answers(tmp_path) -> None:
    assert plan_with(tmp_path, num_samples=7).rule == "best_worst"
    assert plan_with(tmp_path, num_samples=8).rule == "best_mu2sigma"
    assert plan_with(tmp_path, "all", num_samples=8).rule == "all"


def test_best_random_draws_by_seed_and_prompt_and_never_the_best() -> None:
    answers = answers_with(SCORES)
    drawn = {proposed("best_random", answers, seed=seed)[0] for seed in range(60)}
    assert drawn == {(1, other) for other in (0, 2, 3, 4)}
    assert proposed("best_random", answers[::-1], seed=5) == proposed("best_random", answers, seed=5)


def test_all_takes_every_two_and_the_widest_gap_first() -> None:
    pairs = proposed("all", answers_with(SCORES))
    assert len(pairs) == 10
    assert pairs[:3] == [(1, 2), (4, 2), (3, 2)]


def test_threshold_takes_the_pairs_from_the_least_gap_on_and_the_narrowest_first() -> None:
    # Gaps: 1-0 0.8, 1-3 0.6, 1-4 0.4, 4-0 0.4, 4-3 0.2, 3-0 0.2, and over 3 to answer 2.
    pairs = proposed("threshold", answers_with([0.25, 1.0, -3.0, 0.5, 0.625]), min_gap=0.5)
    assert pairs == [(1, 3), (1, 0), (0, 2), (3, 2), (4, 2), (1, 2)]


def test_with_reference_compares_each_sample_with_the_data_sets_own_answer() -> None:
    answers = [*answers_with([0.0, 2.0, 1.5]), Answer("reference", 0, "as it is", score=1.0)]
    task = Task("p", answers, PairingSettings(rule="with_reference"))
    assert [(pair.chosen.name, pair.rejected.name) for pair in RULES["with_reference"](task)] == [
        ("policy#1", "reference#0"),
        ("reference#0", "policy#0"),
        ("policy#2", "reference#0"),
    ]


def test_strong_weak_pairs_equal_samples() -> None:
    answers = [
        Answer(m, n, f"{m} {n}") for m in ("weak", "policy") for n in range(3) if (m, n) != ("weak", 1)
    ]
    task = Task("p", answers, PairingSettings(rule="strong_weak"))
    assert [(pair.chosen.name, pair.rejected.name) for pair in RULES["strong_weak"](task)] == [
        ("policy#0", "weak#0"),
        ("policy#2", "weak#2"),
    ]


def test_a_matching_length_is_looked_for_among_the_worse_answers(tmp_path) -> None:
    texts = ["x y z " * 10, "a b c " * 11, "d " * 2, "e f g " * 9]
    answers = answers_with([1.0, 0.5, 0.0, 0.2], texts=texts)
    assert proposed("best_worst", answers) == [(0, 2)]
    assert proposed("best_worst", answers, max_length_ratio=1.5) == [(0, 3)]
    made = pairs_of("p", answers[:1] + answers[2:3], plan_with(tmp_path, max_length_ratio=1.5))
    assert [d.reason for d in made.dropped] == ["length_mismatch"]


def test_a_length_penalty_is_taken_off_the_score(tmp_path) -> None:
    answers = answers_with([1.0, 0.9], texts=["long " * 40, "short"])
    (pair,) = pairs_of("p", answers, plan_with(tmp_path, length_penalty=0.1)).pairs
    # 1.0 - 0.1 · 200 / 100 = 0.8 and 0.9 - 0.1 · 5 / 100 = 0.895
    assert (pair.chosen.sample, pair.gap) == (1, pytest.approx(0.095, abs=1e-12))


def test_where_all_scores_tie_there_is_no_pair_and_it_says_so(tmp_path) -> None:
    for rule in ("best_worst", "best_mu2sigma", "best_random", "all"):
        made = pairs_of("p", answers_with([0.5] * 4), plan_with(tmp_path, rule))
        assert made.pairs == []
        assert {d.reason for d in made.dropped} == {"tie"}


def test_at_most_so_many_pairs_of_a_prompt_and_only_those_that_no_filter_stops_count(tmp_path) -> None:
    same = "the very same words stand here in both of these answers"
    answers = answers_with([3.0, 2.0, 1.0, 0.0], texts=[same, "b c d e", "f g h i", f"{same}"])
    made = pairs_of("p", answers, plan_with(tmp_path, "all", max_pairs=2))
    assert [(pair.chosen.sample, pair.rejected.sample) for pair in made.pairs] == [(0, 2), (1, 3)]
    assert [(d.reason, d.answers) for d in made.dropped] == [("identical_pair", ("policy#0", "policy#3"))]


def test_impossible_settings_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"pairs\.min_gap must be greater than 0"):
        PairingSettings(rule="threshold")
    with pytest.raises(ConfigError, match=r"max_length_ratio must be at least 1, got 0\.5"):
        PairingSettings(max_length_ratio=0.5)
    with pytest.raises(ConfigError, match=r"weak_model and .*strong_weak go together"):
        plan_with(tmp_path, "strong_weak")


scores = st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=9)
texts = st.sampled_from(
    ["a b c d", "a b c e", "A  b c d", "x y z", "long words " * 9, "other words here now"]
)


@given(
    st.data(),
    st.sampled_from([rule for rule in RULES if rule not in ("with_reference", "strong_weak")]),
    scores,
)
def test_whatever_is_paired_has_a_better_and_a_worse_answer_of_the_prompt(data, rule, scores) -> None:
    answers = answers_with(scores, texts=[data.draw(texts) for _ in scores])
    settings = PairingSettings(
        rule=rule,
        min_gap=data.draw(st.sampled_from([0.5, 1.0]))
        if rule == "threshold"
        else data.draw(st.sampled_from([0, 0.5])),
        max_pairs=data.draw(st.none() | st.integers(1, 3)),
        max_length_ratio=data.draw(st.none() | st.just(1.5)),
    )
    plan = RolloutPlan(
        None,  # type: ignore[arg-type]
        PromptSource({}),
        ModelSpec("policy", "m"),
        GenerationSettings(num_samples=len(scores)),
        Scoring({}),
        settings,
    )
    made = pairs_of("p", answers, plan)
    shuffled = pairs_of("p", data.draw(st.permutations(answers)), plan)
    assert shuffled == made
    for pair in made.pairs:
        assert pair.chosen in answers
        assert pair.rejected in answers
        assert pair.gap > 0
        assert pair.gap >= settings.min_gap
        assert not any(applies(*pair, settings) for applies in PAIR_FILTERS.values())
    assert len(made.pairs) <= (settings.max_pairs or math.inf)
    # Each proposal is a pair or is listed with its reason, as far as pairs were still wanted.
    assert made.pairs or made.dropped


# ---- known truth ----


def noisy_answers(draw: random.Random, count: int) -> tuple[list[Answer], list[float]]:
    """Answers of true quality N(0, 1), scored with noise N(0, 1)."""
    truth = [draw.gauss(0, 1) for _ in range(count)]
    return answers_with([quality + draw.gauss(0, 1) for quality in truth]), truth


def share_right(rule: str, count: int, num_prompts: int, **settings: float) -> tuple[float, float, float]:
    """The share of rightly ordered pairs, what their own gaps promise, and the standard error, prompts apart."""
    draw = random.Random(f"{rule} {count}")
    shares, promised = [], []
    for _ in range(num_prompts):
        answers, truth = noisy_answers(draw, count)
        pairs = RULES[rule](Task("p", answers, PairingSettings(rule=rule, **settings)))  # type: ignore[arg-type]
        if pairs:
            shares.append(statistics.fmean(truth[p.chosen.sample] > truth[p.rejected.sample] for p in pairs))
            promised.append(statistics.fmean(map(probability_right, pairs)))
    error = statistics.stdev(a - b for a, b in zip(shares, promised, strict=True)) / math.sqrt(len(shares))
    return statistics.fmean(shares), statistics.fmean(promised), error


def probability_right(pair: Proposed) -> float:
    """Given two scores, each quality is N(score / 2, 1 / 2), so their difference is N(gap / 2, 1): Φ(gap / 2)."""
    return statistics.NormalDist().cdf(pair.gap / 2)


@pytest.mark.parametrize(
    ("rule", "count", "expected"),
    [
        # Two scores with noise as large as the signal: 1/2 + arcsin(1/√2)/π.
        ("all", 4, 0.75),
        ("best_worst", 2, 0.75),
        # E Φ(R/√2), R the range of as many standard normals: numerical integration of its density.
        ("best_worst", 4, 0.8933),
        ("best_worst", 8, 0.9608),
        ("best_random", 4, None),
        ("best_mu2sigma", 8, None),
    ],
)
def test_the_share_of_rightly_ordered_pairs_is_its_expectation(
    rule: str, count: int, expected: float | None
) -> None:
    share, promised, error = share_right(rule, count, 4000)
    # Whatever a rule chooses by the scores alone: it is right as often as the gaps of its pairs promise.
    assert abs(share - promised) < 4 * error
    if expected is not None:
        assert promised == pytest.approx(expected, abs=0.006)


def test_the_expectations_follow_from_the_density_of_the_range() -> None:
    scipy = pytest.importorskip("scipy.integrate")
    normal = statistics.NormalDist()

    def expectation(count: int) -> float:
        def density(r: float) -> float:
            inner = scipy.quad(
                lambda x: (
                    normal.pdf(x) * normal.pdf(x + r) * (normal.cdf(x + r) - normal.cdf(x)) ** (count - 2)
                ),
                -8,
                8,
            )
            return count * (count - 1) * inner[0]

        # Scores have deviation √2, so a gap is √2 R, and Φ(gap / 2) = Φ(R / √2).
        return scipy.quad(lambda r: density(r) * normal.cdf(r / math.sqrt(2)), 0, 12)[0]

    assert [round(expectation(count), 4) for count in (2, 4, 8)] == [0.75, 0.8933, 0.9608]
