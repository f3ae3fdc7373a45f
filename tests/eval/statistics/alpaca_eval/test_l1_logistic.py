"""The penalised logistic regression: worked by hand, and against a general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from dynamic_dpo.eval.statistics.alpaca_eval.l1_logistic import COSTS, choose_cost, fit_l1, logistic


def test_a_coefficient_is_zero_until_the_data_outweigh_the_penalty() -> None:
    # Three wins and a loss: the slope at 0 is 4/2 - 3 = -1, so a cost of 1 is where the coefficient begins to move.
    bias, shares, weights = np.ones((4, 1)), np.array([1.0, 1.0, 1.0, 0.0]), np.ones(4)
    assert fit_l1(bias, shares, weights, cost=0.99).tolist() == [0.0]
    # At a cost of 2 the slope of the loss must be 1/2: 3 - 4p = 1/2, p = 5/8.
    assert logistic(fit_l1(bias, shares, weights, cost=2.0)) == pytest.approx([5 / 8])
    assert logistic(fit_l1(bias, shares, weights, cost=1e8)) == pytest.approx([3 / 4])


@pytest.mark.parametrize("cost", [0.01, 0.3, 2.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_that_of_a_general_optimiser(seed: int, cost: float) -> None:
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(200, 3)) * [1.0, 3.0, 0.3] + [0.0, 1.0, 0.0]
    shares = logistic(design @ [1.0, -0.5, 0.0] + rng.normal(size=200))
    weights = rng.uniform(0.1, 2.0, size=200)

    def objective(halves: np.ndarray) -> float:
        # |b| is smooth in two halves of b that are not negative.
        up, down = np.split(halves, 2)
        z = design @ (up - down)
        return halves.sum() + cost * float(weights @ (np.logaddexp(0, z) - shares * z))

    best = minimize(
        objective,
        np.full(6, 0.1),
        method="L-BFGS-B",
        bounds=[(0, None)] * 6,
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    found = fit_l1(design, shares, weights, cost)
    value = objective(np.concatenate([np.maximum(found, 0), np.maximum(-found, 0)]))
    assert value <= best.fun * (1 + 1e-9)
    assert found == pytest.approx(best.x[:3] - best.x[3:], abs=2e-3)


def test_certain_rows_do_not_run_off() -> None:
    found = fit_l1(np.ones((50, 1)), np.ones(50), np.ones(50), cost=1e4)
    # 50 * 1e4 * (1 - p) = 1.
    assert logistic(-found) == pytest.approx([2e-6], rel=1e-3)


def test_what_folds_cannot_tell_apart_is_penalised_most_and_a_clear_effect_least() -> None:
    rng = np.random.default_rng(0)
    folds = np.arange(400) % 5
    column = rng.normal(size=(400, 1))
    half = np.full(400, 0.5)
    assert choose_cost(column, half, np.ones(400), folds) == COSTS[0]
    assert choose_cost(column, logistic(3 * column[:, 0]), np.ones(400), folds) == COSTS[-1]
    # Without a second fold nothing can be left out.
    assert choose_cost(column, half, np.ones(400), np.zeros(400, dtype=int)) == COSTS[-1]
