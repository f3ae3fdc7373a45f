"""The length-controlled win rate: simulated truths come back, and so do the numbers that AlpacaEval has published."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from dynamic_dpo.eval.statistics.alpaca_eval.difficulty import baseline_at_other_lengths, fit_jointly
from dynamic_dpo.eval.statistics.alpaca_eval.l1_logistic import logistic
from dynamic_dpo.eval.statistics.alpaca_eval.length_control import (
    BaselineAtOtherLengths,
    fit_length_controlled,
    standardised,
)

EFFECT = 1.5


def simulated(seed: int, biases: list[float], num: int = 805) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return preferences and differences in length, [M, N], and difficulties, [N]."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=num) * 1.5
    longer = rng.normal(size=(len(biases), num)) * 800 + rng.uniform(-600, 600, size=(len(biases), 1))
    lengths = np.tanh(longer / longer.std(1, ddof=1, keepdims=True))
    log_odds = np.array(biases)[:, None] + EFFECT * lengths + difficulty
    # A sure judge says nearly 0 or 1, and is drawn towards neither.
    won = rng.random(log_odds.shape) < logistic(log_odds)
    return np.where(won, 0.98, 0.02), longer, difficulty


def test_the_win_rate_at_equal_length_and_the_difficulties_come_back() -> None:
    biases = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0] * 3
    preference, longer, difficulty = simulated(1, biases)
    fit = fit_jointly(preference, longer)
    assert np.corrcoef(fit.difficulty, difficulty)[0, 1] > 0.9
    assert fit.length_effect == pytest.approx(EFFECT, abs=0.2)
    assert fit.difficulty.mean() == pytest.approx(0, abs=1e-12)
    rows = baseline_at_other_lengths(fit.difficulty, fit.length_effect)
    for number, bias in enumerate(biases):
        found = fit_length_controlled(preference[number], longer[number], fit.difficulty, rows)
        truth = 0.02 + 0.96 * logistic(bias + difficulty).mean()
        assert found.rate == pytest.approx(truth, abs=0.05)
        # What length alone does to these models is larger than that by far.
        assert found.length_effect > 1.0


def test_what_was_not_asked_changes_nothing() -> None:
    preference, longer, _ = simulated(2, [-1.0, 0.0, 1.0, 0.5])
    whole = fit_jointly(preference, longer)
    with_a_stranger = fit_jointly(
        np.vstack([preference, np.full((1, 805), np.nan)]), np.vstack([longer, np.full((1, 805), np.nan)])
    )
    assert with_a_stranger.difficulty == pytest.approx(whole.difficulty, abs=1e-3)


def test_without_any_effect_of_length_the_rate_is_the_mean_preference() -> None:
    rng = np.random.default_rng(3)
    preference = rng.uniform(0.6, 0.9, size=500)
    found = fit_length_controlled(preference, rng.normal(size=500) * 300, np.zeros(500), None)
    assert found.rate == pytest.approx(preference.mean(), abs=0.005)
    assert abs(found.length_effect) < 0.1
    # Every instruction is predicted alike: no difference between instructions is left.
    assert found.standard_error == pytest.approx(0, abs=1e-9)


def test_equal_lengths_say_nothing_about_length() -> None:
    preference = np.array([1.0, 0.0, 1.0, 1.0] * 25)
    found = fit_length_controlled(preference, np.full(100, 250.0), np.zeros(100), None)
    assert found.length_effect == 0
    assert found.rate == pytest.approx(0.75, abs=0.01)
    assert standardised(np.full(3, 7.1)).tolist() == [0.0, 0.0, 0.0]
    alone = fit_length_controlled(np.array([1.0]), np.array([30.0]), np.zeros(1), None)
    assert math.isnan(alone.standard_error)


def test_the_baseline_at_other_lengths_keeps_the_effect_of_length_where_a_model_tells_nothing() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.normal(size=400)
    preference = np.where(rng.random(400) < logistic(difficulty - 1), 1.0, 0.0)
    # Always shorter by nearly the same: in such a fit length and bias are one.
    longer = -500.0 + rng.normal(size=400)
    rows = baseline_at_other_lengths(difficulty, 2.0)
    found = fit_length_controlled(preference, longer, difficulty, rows)
    free = fit_length_controlled(preference, longer, difficulty, None)
    assert found.length_effect == pytest.approx(2.0, abs=0.3)
    # A standard deviation of 1 makes the model shorter by 500 of them: the length term is worth -2 everywhere.
    assert found.bias == pytest.approx(1.0, abs=0.4)
    assert found.rate > free.rate + 0.2


def test_rows_of_the_baseline_weigh_a_fifth_together() -> None:
    one = BaselineAtOtherLengths(np.ones(10), np.zeros(10), np.full(10, 0.8), np.arange(10))
    twice = BaselineAtOtherLengths(*(np.concatenate([column, column]) for column in one))
    preference, longer = np.tile([0.3, 0.6], 5), np.tile([-100.0, 100.0], 5)
    assert fit_length_controlled(preference, longer, np.zeros(10), twice).rate == pytest.approx(
        fit_length_controlled(preference, longer, np.zeros(10), one).rate, abs=1e-6
    )


@pytest.fixture(scope="module")
def alpacaeval(shared_folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Model to preferences, differences in length and the published length-controlled win rate."""
    folder = shared_folder / "data" / "alpacaeval"
    with (folder / "leaderboard.csv").open(encoding="utf-8") as file:
        published = {row["model"]: float(row["length_controlled_winrate"]) for row in csv.DictReader(file)}
    rows: dict[str, list[tuple[int, float, float]]] = {}
    with gzip.open(folder / "annotations.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            longer = float(row["model_characters"]) - float(row["baseline_characters"])
            rows.setdefault(row["model"], []).append(
                (int(row["instruction"]), float(row["preference"]) - 1, longer)
            )
    # By construction the baseline wins half against itself; nothing is fitted.
    models = sorted(rows.keys() - {"gpt4_1106_preview"})
    columns = {model: np.array(sorted(rows[model])).T for model in models}
    return {model: (columns[model][1], columns[model][2], published[model]) for model in models}


def gaps(
    alpacaeval: dict[str, tuple[np.ndarray, np.ndarray, float]], difficulty: np.ndarray, length_effect: float
) -> tuple[np.ndarray, float]:
    """Return what our rates differ from the published ones by, in points, and the rank correlation."""
    rows = baseline_at_other_lengths(difficulty, length_effect)
    found = [
        100 * fit_length_controlled(preference, longer, difficulty, rows).rate
        for preference, longer, _ in alpacaeval.values()
    ]
    published = [rate for _, _, rate in alpacaeval.values()]
    return np.abs(np.subtract(found, published)), float(spearmanr(found, published).statistic)


def test_published_length_controlled_win_rates_come_out(
    alpacaeval: dict[str, tuple[np.ndarray, np.ndarray, float]],
) -> None:
    preference, longer = (np.stack([row[part] for row in alpacaeval.values()]) for part in (0, 1))
    assert len(preference) == 30
    fit = fit_jointly(preference, longer)
    difference, ranks = gaps(alpacaeval, fit.difficulty, fit.length_effect)
    # Measured: mean .27, largest 1.04, rank correlation .9960.
    assert difference.mean() <= 0.35
    assert difference.max() <= 1.5
    assert ranks >= 0.995


def test_models_that_had_no_part_in_the_difficulties_come_out_too(
    alpacaeval: dict[str, tuple[np.ndarray, np.ndarray, float]],
) -> None:
    names, differences = list(alpacaeval), []
    for strangers in (names[0::3], names[1::3], names[2::3]):
        rest = [alpacaeval[name] for name in names if name not in strangers]
        fit = fit_jointly(np.stack([row[0] for row in rest]), np.stack([row[1] for row in rest]))
        rows = {name: alpacaeval[name] for name in strangers}
        differences.append(gaps(rows, fit.difficulty, fit.length_effect)[0])
    # Measured: mean .55, largest 2.0.
    assert np.concatenate(differences).mean() <= 1
    assert np.concatenate(differences).max() <= 3
