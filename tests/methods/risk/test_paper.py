"""The calibrated controller step by step, the schedule, and what both do on margins that carry no signal."""

from __future__ import annotations

import math
import random
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.loss.beta_binomial import exceedance_scores
from dynamic_dpo.methods import Risk, RiskConfig, Schedule, ScheduleConfig
from dynamic_dpo.methods.risk.config import RiskMode
from dynamic_dpo.methods.risk.drift import describe_null_drift, null_drift
from dynamic_dpo.methods.risk.exact import ExactChains
from dynamic_dpo.methods.risk.modes import CHAINS, TESTS


def exact(pairs_per_update: int = 16, **settings: object) -> Risk:
    config = RiskConfig(**{"mode": "exact", "warmup_steps": 1, **settings})  # type: ignore[arg-type]
    return Risk(config, pairs_per_update=pairs_per_update)


def test_exact_counts_against_a_rank_of_the_window_worked_by_hand() -> None:
    # n = 1, delta .5, multiple 4: W = 3, j = 2, the median of the last three margins.
    method = exact(1, delta=0.5, window_multiple=4, alpha=0.1, beta_0=0.2)
    for margin in (5.0, 1.0, 3.0):
        assert method.observe(torch.tensor([margin]))["risk/warmup"] == 1.0
    # Above the median 3 of {5, 1, 3}: K = 1; the law of one margin is (1/2, 1/2), s = ±1/2.
    up = method.observe(torch.tensor([4.0]))
    assert (up["risk/tau"], up["risk/p_hat"], up["risk/s"], up["risk/fail"]) == (3.0, 1.0, 0.5, 1.0)
    assert up["risk/u"] == pytest.approx(1.0)  # (1 - .5) / sqrt(.25)
    assert method.beta == pytest.approx(0.2 * math.exp(0.05))
    # The window has moved on to {1, 3, 4}: the batch was tested before it came in, 5 has gone out.
    down = method.observe(torch.tensor([2.0]))
    assert (down["risk/tau"], down["risk/p_hat"], down["risk/s"]) == (3.0, 0.0, -0.5)
    assert method.beta == pytest.approx(0.2)


def test_exact_waits_for_its_window_and_for_its_warm_up() -> None:
    def first_reading(method: Risk) -> int:
        draw = torch.Generator().manual_seed(0)
        for update in range(1, 100):
            if not method.observe(torch.randn(16, generator=draw))["risk/warmup"]:
                return update
        raise AssertionError("the controller never started")

    assert first_reading(exact()) == 21  # 20 batches fill 319 places
    assert first_reading(exact(warmup_steps=30)) == 31


def test_a_short_batch_is_tested_under_the_law_for_its_own_size() -> None:
    method = exact()
    method.observe(torch.linspace(0, 1, 319))
    reading = method.observe(torch.tensor([2.0, -1.0, -1.0]))
    assert reading["risk/s"] == exceedance_scores(3, 319, 288)[1]
    assert reading["risk/p_hat"] == pytest.approx(1 / 3)


def test_exact_sees_ranks_alone_so_that_any_monotone_change_of_the_margins_leaves_beta_as_it_is() -> None:
    draw = torch.Generator().manual_seed(5)
    normal = torch.randn(120, 16, generator=draw, dtype=torch.float64)
    views = {
        "normal": normal,
        "lognormal": normal.exp(),
        "t3": torch.from_numpy(t(3).ppf(norm.cdf(normal.numpy()))),
        "shifted": 3 * normal - 7,
    }
    betas = {}
    for name, margins in views.items():
        method = exact(alpha=0.05)
        betas[name] = [method.observe(row)["risk/beta"] for row in margins]
    assert betas["lognormal"] == betas["normal"]
    assert betas["t3"] == betas["normal"]
    assert betas["shifted"] == betas["normal"]
    assert len(set(betas["normal"])) > 50


def test_ties_count_as_if_they_were_in_random_order() -> None:
    method, rates = exact(), []
    for _ in range(2000):
        reading = method.observe(torch.zeros(16))
        if not reading["risk/warmup"]:
            rates.append(reading["risk/p_hat"])
    # 31,700 draws at a rate of .1 have a standard error of .0017, the windows' overlap adds some.
    assert sum(rates) / len(rates) == pytest.approx(0.1, abs=0.01)


def test_paper_takes_all_ties_for_exceedances() -> None:
    method = Risk(RiskConfig(warmup_steps=1))
    method.observe(torch.zeros(16))
    assert method.observe(torch.zeros(16))["risk/p_hat"] == 1.0


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    def readings(seed: int) -> list[float]:
        method = exact(seed=seed)
        return [method.observe(torch.zeros(16))["risk/beta"] for _ in range(60)]

    first = readings(1)
    random.seed(123)
    torch.manual_seed(123)
    assert readings(1) == first
    assert readings(2) != first


def test_an_irregular_delta_has_the_right_mean_through_its_drawn_rank() -> None:
    # W = 319 and rank 280 or 281, drawn with .64: 1 - 280.64/320 = .123 on the mean.
    method, count, total = exact(delta=0.123), 0, 0.0
    draw = torch.Generator().manual_seed(0)
    for _ in range(4000):
        reading = method.observe(torch.randn(16, generator=draw))
        if not reading["risk/warmup"]:
            count, total = count + 1, total + reading["risk/p_hat"]
    # Standard error: sqrt(.123 × .877 / 63,680) = .0013, about doubled by the windows' overlap.
    assert total / count == pytest.approx(0.123, abs=0.006)


def test_alpha_scale_multiplies_alpha() -> None:
    slow = Risk(RiskConfig(warmup_steps=1, alpha=0.01, alpha_scale=4.0))
    fast = Risk(RiskConfig(warmup_steps=1, alpha=0.04))
    for k in range(10):
        margins = torch.arange(16.0) + k
        assert slow.observe(margins)["risk/beta"] == fast.observe(margins)["risk/beta"]


def test_a_window_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="size 319, this run has 159"):
        exact(8).load_state_dict(exact(16).state_dict())
    with pytest.raises(CheckpointError, match="mode 'exact', this run has 'paper'"):
        Risk().load_state_dict(exact(16).state_dict())


def test_the_schedule_grows_beta_at_its_rate_after_the_warm_up() -> None:
    method = Schedule(ScheduleConfig(beta_0=0.1, drift_per_1000=200.0, warmup_steps=2, beta_max=0.15))
    betas = [method.observe(torch.zeros(4))["risk/beta"] for _ in range(6)]
    # .1 exp(.2 t), t = 0, 0, 1, 2, then the bound.
    assert betas == pytest.approx([0.1, 0.1, 0.1 * math.exp(0.2), 0.1 * math.exp(0.4), 0.15, 0.15])
    assert "+200.000" in method.start_notes(6)[0]


@pytest.mark.parametrize(("rate", "bound"), [(1e9, 2.0), (-1e9, 0.01)])
def test_a_schedule_beyond_all_numbers_stays_at_its_bound(rate: float, bound: float) -> None:
    method = Schedule(ScheduleConfig(drift_per_1000=rate, warmup_steps=0, beta_min=0.01))
    method.observe(torch.zeros(1))
    assert method.beta == bound


def test_a_matched_schedule_ends_where_the_risk_controller_drifts_to_on_noise() -> None:
    risk = RiskConfig(momentum=0.1, warmup_steps=10, beta_0=0.2, beta_max=5.0)
    schedule = ScheduleConfig.matched_to(risk, 16)
    assert schedule.drift_per_1000 == null_drift(risk, 16).per_1000
    assert (schedule.beta_0, schedule.warmup_steps, schedule.beta_max) == (0.2, 10, 5.0)
    method = Schedule(schedule)
    for _ in range(1010):
        method.observe(torch.zeros(1))
    assert math.log(method.beta / 0.2) == pytest.approx(schedule.drift_per_1000)


def hard_margins(chains: int, updates: int, n: int, *, ties: bool) -> torch.Tensor:
    """Heavy-tailed margins whose level grows half-way; with ties some are rounded, as saturated ones are."""
    draw = torch.Generator().manual_seed(n)
    margins = torch.randn(chains, updates, n, generator=draw) ** 3
    margins[:, updates // 2 :] += 1.5
    if ties:
        margins[: chains // 2] = margins[: chains // 2].round()
    return margins


@pytest.mark.parametrize("n", [1, 5, 16])
@pytest.mark.parametrize("mode", get_args(RiskMode))
def test_the_simulated_controller_is_the_controller_itself_step_by_step(mode: RiskMode, n: int) -> None:
    # Ties in exact are broken by draws of its own, in the simulation by others.
    margins = hard_margins(4, 120, n, ties=mode != "exact")
    config = RiskConfig(
        mode=mode,
        delta=0.2,
        momentum=0.1,
        warmup_steps=4,
        alpha=0.05,
        beta_max=0.3,
        margin_budget=1.0,
        gain_i=0.05,
    )
    methods = [Risk(config, pairs_per_update=n) for _ in range(4)]
    chains = CHAINS[mode](config, n, 4)
    betas = set()
    for update in range(margins.shape[1]):
        readings = [method.observe(row) for method, row in zip(methods, margins[:, update], strict=True)]
        reading = chains.observe(margins[:, update].numpy())
        assert np.exp(chains.log_beta) == pytest.approx([method.beta for method in methods], rel=1e-12)
        assert (reading is None) == bool(readings[0]["risk/warmup"])
        if reading is not None:
            for key, values in (("tau", reading.tau), ("p_hat", reading.p_hat), ("s", reading.s)):
                expected = [row[f"risk/{key}"] for row in readings]
                assert values == pytest.approx(expected, rel=1e-12, abs=1e-12)
        betas |= {method.beta for method in methods}
    assert len(betas) > 50, "a controller that stands still proves nothing"


def test_every_mode_that_can_be_named_has_a_test_and_its_chains() -> None:
    assert list(TESTS) == list(CHAINS) == list(get_args(RiskMode))


def test_simulated_ties_count_as_if_they_were_in_random_order() -> None:
    chains = ExactChains(RiskConfig(mode="exact", warmup_steps=1), 16, 50)
    readings = [chains.observe(np.zeros((50, 16), dtype=np.float32)) for _ in range(120)]
    rates = [reading.p_hat.mean() for reading in readings if reading is not None]
    assert len(rates) == 100
    assert sum(rates) / len(rates) == pytest.approx(0.1, abs=0.01)


def test_paper_drifts_on_noise_by_the_published_amount() -> None:
    drift = null_drift(RiskConfig(momentum=0.1), 16)
    assert drift.per_1000 == pytest.approx(0.97, abs=0.1)
    assert drift.standard_error < 0.05


def test_exact_does_not_drift_on_noise() -> None:
    # Ranks alone matter (shown above), so that normal margins stand for t3, lognormal and all others.
    drift = null_drift(RiskConfig(mode="exact"), 16, updates=1000, chains=600)
    assert drift.standard_error < 0.005
    assert abs(drift.per_1000) <= 0.02


def test_the_start_note_tells_the_drift_of_paper_and_the_calibration_of_exact() -> None:
    paper = RiskConfig(momentum=0.1, warmup_steps=100)
    (note,) = Risk(paper).start_notes(1100)
    rate = null_drift(paper, 16).per_1000
    assert f"{rate:+.2f} per 1,000 updates" in note
    assert f"1000 updates after warm-up that alone multiplies beta by {math.exp(rate):.4g}" in note
    assert "no drift" in describe_null_drift(RiskConfig(mode="exact"), 16, 1000)


def test_the_drift_of_a_very_long_run_is_told_without_overflow() -> None:
    note = describe_null_drift(RiskConfig(alpha=0.3), 4, 10**6)
    assert "e+" in note
    assert "inf" not in note


def test_impossible_simulations_are_refused() -> None:
    for n, updates, chains in ((0, 10, 4), (4, 0, 4), (4, 10, 1)):
        with pytest.raises(ValueError, match="need n >= 1"):
            null_drift(RiskConfig(), n, updates=updates, chains=chains)
