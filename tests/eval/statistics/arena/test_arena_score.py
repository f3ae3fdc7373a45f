"""Arena-Hard's score: by hand, against an independent fit, and in simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics.arena.battles import battles
from dynamic_dpo.eval.statistics.arena.score import ArenaResult, ArenaTable, arena_result
from dynamic_dpo.eval.statistics.arena.style import style_difference, style_of
from helpers_judgements import judged

MIRROR = {"A": "B", "B": "A"}


def games(prompt: str, model: str, *labels: str, baseline: str = "base") -> list[JudgementRecord]:
    """Both games of a question by their labels from the model's side; ``?`` is invalid, an empty label not played."""
    records = []
    for label, (first, second) in zip(labels, ((baseline, model), (model, baseline)), strict=True):
        verdict = {">": "A", "<": "B", "=": "tie", "?": "invalid"}.get(label[:1])
        if verdict is not None:
            verdict = verdict if first == model else MIRROR.get(verdict, verdict)
            records.append(judged(prompt, first, second, verdict, strong=len(label) == 2))
    return records


def score_of(table: ArenaTable, model: str) -> float:
    return next(row.score for row in table.scores if row.model == model)


def controlled_of(table: ArenaTable, model: str) -> float:
    found = next(row.controlled for row in table.scores if row.model == model)
    assert found is not None
    return found


def test_strong_verdicts_count_three_times_and_ties_half() -> None:
    # 3 + 1 of 4, and 0.5 + 0 of 2: 4.5 of 6.
    records = games("p1", "new", ">>", ">") + games("p2", "new", "=", "<")
    result = arena_result(records, "base")
    assert score_of(result.overall, "new") == pytest.approx(4.5 / 6, abs=2e-3)
    assert score_of(result.overall, "base") == 0.5
    assert result.labels == {
        "new": {">>": 1, ">": 1, "=": 1, "<": 1},
        "base": {"<<": 1, "<": 1, "=": 1, ">": 1},
    }


def test_a_question_counts_with_both_its_games_or_not_at_all() -> None:
    records = (
        games("p1", "new", ">", ">")
        + games("p2", "new", "<<", "?")
        + games("p3", "new", "<<", "")
        + games("p4", "new", "<", "=")
    )
    result = arena_result(records, "base")
    assert [row.prompt for row in battles(records, "base").rows] == ["p1", "p4"]
    assert score_of(result.overall, "new") == pytest.approx(2.5 / 4, abs=2e-3)
    assert result.left_out == {"base": 2, "new": 2}


def test_another_weight_of_strong_verdicts_is_used() -> None:
    records = games("p1", "new", ">>", "<")
    assert score_of(arena_result(records, "base", strong_weight=1).overall, "new") == pytest.approx(0.5)
    assert score_of(arena_result(records, "base").overall, "new") == pytest.approx(3 / 4, abs=3e-3)


def test_the_order_of_judgements_changes_nothing() -> None:
    records = [record for n in range(8) for record in games(f"p{n}", "new", ">" if n % 3 else "<<", "=")]
    assert arena_result(records, "base") == arena_result(records[::-1], "base")


def test_categories_get_tables_of_their_own() -> None:
    records = games("p1", "new", ">", ">") + games("p2", "new", "<", "<") + games("p3", "new", "<", ">")
    kinds = {"p1": "hard_prompt", "p2": "creative_writing", "p3": "creative_writing"}
    result = arena_result(records, "base", categories=kinds)
    assert list(result.by_category) == ["creative_writing", "hard_prompt"]
    assert score_of(result.by_category["hard_prompt"], "new") == pytest.approx(1.0, abs=5e-3)
    assert score_of(result.by_category["creative_writing"], "new") == pytest.approx(1 / 4, abs=5e-3)
    assert arena_result(records, "base", categories=dict.fromkeys(kinds, "one")).by_category == {}


def test_a_model_that_won_everything_keeps_a_finite_interval_with_a_width() -> None:
    records = [record for n in range(20) for record in games(f"p{n}", "new", ">", ">>")]
    (row, _) = arena_result(records, "base").overall.scores
    assert row.score > 0.999
    assert 0.8 < row.interval.low < 0.99 < row.interval.high <= 1.0


def test_models_are_ranked_through_others_and_strangers_are_named() -> None:
    chain = [r for n in range(30) for r in games(f"p{n}", "middle", ">" if n % 3 else "<", "=")]
    chain += [
        r for n in range(30) for r in games(f"p{n}", "top", ">" if n % 3 else "<", "=", baseline="middle")
    ]
    chain += games("p0", "island", ">", ">", baseline="reef")
    table = arena_result(chain, "base").overall
    # Each step has 35 of 60 points: log-odds of log(35/25), which add up.
    step = math.log(35 / 25)
    assert [row.model for row in table.scores] == ["top", "middle", "base"]
    assert score_of(table, "top") == pytest.approx(1 / (1 + math.exp(-2 * step)), abs=2e-3)
    assert table.unranked == ("island", "reef")


def test_without_a_whole_question_there_is_no_score() -> None:
    with pytest.raises(DataError, match="has a verdict in both orders"):
        arena_result(games("p1", "new", ">", ""), "base")
    with pytest.raises(DataError, match="no question with the baseline 'other'"):
        arena_result(games("p1", "new", ">", ">"), "other")


# Style


def texts(rng: np.random.Generator, count: int, model: str, *, mean: float) -> list[OutputRecord]:
    lengths = np.maximum(rng.normal(mean, 0.35 * mean, count), 8).astype(int)
    lists, bold = rng.integers(0, 4, count), rng.integers(0, 3, count)
    return [
        OutputRecord(f"p{n}", model, 0, "- w\n" * int(k) + "**w** " * int(m) + "x" * int(length), 0, True)
        for n, (length, k, m) in enumerate(zip(lengths, lists, bold, strict=True))
    ]


def differences(own: list[OutputRecord], other: list[OutputRecord]) -> NDArray[np.float64]:
    return np.array(
        [style_difference(style_of(a.text), style_of(b.text)) for a, b in zip(own, other, strict=True)]
    )


def judge_by(
    rng: np.random.Generator, logits: NDArray[np.float64], model: str = "new"
) -> list[JudgementRecord]:
    """Two independent games a prompt, each won with the logistic function of its logit."""
    won = rng.random((len(logits), 2)) < 1 / (1 + np.exp(-logits))[:, None]
    return [
        record
        for n, (first, second) in enumerate(won)
        for record in games(f"p{n}", model, ">" if first else "<", ">" if second else "<")
    ]


def test_the_controlled_fit_is_that_of_an_independent_logistic_regression() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(5)
    own, other = texts(rng, 300, "new", mean=500), texts(rng, 300, "base", mean=300)
    x = differences(own, other)
    records = judge_by(rng, 0.3 + 1.5 * x[:, 0] - 2.0 * x[:, 2])
    shares = [
        row.points / row.size
        for row in sorted(battles(records, "base").rows, key=lambda r: int(r.prompt[1:]))
    ]
    for centred in (False, True):
        middle = x.mean(0) if centred else np.zeros(4)
        kept = np.sqrt(((x - middle) ** 2).mean(0)) > 1e-9
        scaled = (x - middle)[:, kept] / np.sqrt(((x - middle) ** 2).mean(0))[kept]
        design = np.column_stack([np.ones(300), scaled])
        fit = sm.GLM(shares, design, family=sm.families.Binomial(), var_weights=np.full(300, 2.0)).fit()
        table = arena_result(records, "base", outputs=own + other, centred=centred, num_resamples=100).overall
        assert controlled_of(table, "new") == pytest.approx(1 / (1 + math.exp(-fit.params[0])), abs=2e-4)
        assert list(table.style_effects.values()) == pytest.approx(list(fit.params[1:]), abs=2e-3)
        # No output has a heading: a feature in which nothing differs is left out.
        assert list(table.style_effects) == ["length", "lists", "bold"]


def test_without_texts_nothing_is_controlled() -> None:
    table = arena_result(games("p1", "new", ">", ">"), "base").overall
    assert table.scores[0].controlled is None
    assert table.style_effects == {}


def test_questions_without_a_text_are_left_out_of_the_controlled_score_alone() -> None:
    rng = np.random.default_rng(0)
    own, other = texts(rng, 40, "new", mean=400), texts(rng, 40, "base", mean=300)
    records = judge_by(rng, np.zeros(40))
    table = arena_result(records, "base", outputs=own[:30] + other, num_resamples=100).overall
    assert (table.num_prompts, table.num_left_out) == (40, 10)
    assert table.scores[0].controlled is not None


def one_table(seed: int, *, strength: float, bias: float, mean: float, count: int = 400) -> ArenaResult:
    """Judge a model whose outputs are `mean` / 300 times as long, by a judge with a taste for length."""
    rng = np.random.default_rng(seed)
    own, other = texts(rng, count, "new", mean=mean), texts(rng, count, "base", mean=300)
    records = judge_by(rng, strength + bias * differences(own, other)[:, 0])
    return arena_result(records, "base", outputs=own + other, num_resamples=100)


@pytest.mark.parametrize("strength", [-0.6, 0.0, 0.8])
def test_style_control_removes_a_planted_taste_for_length_and_nothing_else(strength: float) -> None:
    truth = 1 / (1 + math.exp(-strength))
    seeds = range(24)
    biased = [one_table(seed, strength=strength, bias=2.5, mean=600).overall for seed in seeds]
    fair = [one_table(seed, strength=strength, bias=0.0, mean=600).overall for seed in seeds]

    # Longer answers gain from the taste, and with style controlled they have what they are worth.
    assert np.mean([score_of(table, "new") for table in biased]) > truth + 0.1
    assert np.mean([controlled_of(table, "new") for table in biased]) == pytest.approx(truth, abs=0.015)
    # A judge without the taste is told the same by both.
    assert np.mean([score_of(table, "new") for table in fair]) == pytest.approx(truth, abs=0.015)
    assert np.mean([controlled_of(table, "new") for table in fair]) == pytest.approx(truth, abs=0.015)
    # The taste is found where it was planted and in no other feature.
    effects = {
        name: np.mean([table.style_effects[name] for table in biased]) for name in biased[0].style_effects
    }
    assert effects["length"] > 0.7
    assert abs(effects["lists"]) < 0.1
    assert abs(effects["bold"]) < 0.1


def test_centred_features_leave_what_a_single_model_gains_by_its_own_style() -> None:
    table = [one_table(seed, strength=0.0, bias=2.5, mean=600) for seed in range(6)]
    seen = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        own, other = texts(rng, 400, "new", mean=600), texts(rng, 400, "base", mean=300)
        records = judge_by(rng, 2.5 * differences(own, other)[:, 0])
        result = arena_result(records, "base", outputs=own + other, centred=True, num_resamples=100)
        seen.append(controlled_of(result.overall, "new") - score_of(result.overall, "new"))
    assert abs(np.mean(seen)) < 0.02
    assert np.mean([score_of(t.overall, "new") - controlled_of(t.overall, "new") for t in table]) > 0.1


# Coverage

LABELS = (">>", ">", "=", "<", "<<")


def label_shares(strength: float) -> NDArray[np.float64]:
    """Chances of the five labels: an ordered logistic model."""
    cuts = np.array([1.6, 0.3, -0.3, -1.6])
    above = 1 / (1 + np.exp(-(strength - cuts)))
    return np.diff(np.concatenate([[0.0], above, [1.0]]))


def true_score(strength: float, spread: float) -> float:
    """The weighted share of points over prompts of two kinds, as far above the strength as below."""
    shares = (label_shares(strength + spread) + label_shares(strength - spread)) / 2
    weights, points = np.array([3, 1, 1, 1, 3]), np.array([3, 1, 0.5, 0, 0])
    return float(shares @ points / (shares @ weights))


def simulated(rng: np.random.Generator, strengths: dict[str, float], count: int, spread: float) -> list[Any]:
    records: list[JudgementRecord] = []
    lean = rng.choice([-spread, spread], count)
    for model, strength in strengths.items():
        for n in range(count):
            drawn = rng.choice(5, size=2, p=label_shares(strength + lean[n]))
            records += games(f"p{n:04d}", model, LABELS[drawn[0]], LABELS[drawn[1]])
    return records


def coverage(*, runs: int, count: int, num_resamples: int, first_seed: int = 0) -> dict[str, float]:
    """Return how often the interval of each of two models held its true score."""
    strengths, spread = {"strong": 0.9, "weak": -0.4}, 1.0
    held = dict.fromkeys(strengths, 0)
    for seed in range(first_seed, first_seed + runs):
        records = simulated(np.random.default_rng(seed), strengths, count, spread)
        for row in arena_result(records, "base", num_resamples=num_resamples, seed=seed).overall.scores:
            if row.model != "base":
                truth = true_score(strengths[row.model], spread)
                held[row.model] += row.interval.low <= truth <= row.interval.high
    return {model: count / runs for model, count in held.items()}


def test_strengths_are_recovered() -> None:
    strengths = {"strong": 0.9, "even": 0.0, "weak": -0.4}
    records = simulated(np.random.default_rng(1), strengths, 1500, 1.0)
    table = arena_result(records, "base", num_resamples=100).overall
    assert [row.model for row in table.scores if row.model != "base"] == ["strong", "even", "weak"]
    for model, strength in strengths.items():
        assert score_of(table, model) == pytest.approx(true_score(strength, 1.0), abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    # 60 runs of two models know a coverage of 95 % to about 2 points; the exact form is slow.
    found = coverage(runs=60, count=60, num_resamples=200)
    assert 0.89 <= np.mean(list(found.values())) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, 200])
def test_intervals_cover_93_to_97_percent_in_1000_runs(count: int) -> None:
    for share in coverage(runs=1000, count=count, num_resamples=1000).values():
        assert 0.93 <= share <= 0.97


def style_coverage(*, runs: int, count: int, num_resamples: int) -> float:
    """Return how often the controlled interval held the score that the model has at equal style."""
    held = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        own, other = texts(rng, count, "new", mean=500), texts(rng, count, "base", mean=300)
        records = judge_by(rng, 0.4 + 1.5 * differences(own, other)[:, 0])
        result = arena_result(records, "base", outputs=own + other, num_resamples=num_resamples, seed=seed)
        row = next(row for row in result.overall.scores if row.model == "new")
        assert row.controlled_interval is not None
        held += row.controlled_interval.low <= 1 / (1 + math.exp(-0.4)) <= row.controlled_interval.high
    return held / runs


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 300])
def test_intervals_at_equal_style_cover_93_to_97_percent_in_1000_runs(count: int) -> None:
    assert 0.93 <= style_coverage(runs=1000, count=count, num_resamples=1000) <= 0.97
