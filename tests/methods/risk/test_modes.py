"""Modes rm and target, the monitor, and the scaling of alpha: numbers by hand, and what they do on noise."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict

import pytest
import torch
from scipy.stats import binom, norm

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.loss.risk import (
    binomial_law,
    centred_scores,
    log_e_value,
    mid_p_scores,
    quantile_gain,
    tied_mid_p_score,
)
from dynamic_dpo.methods import BuildContext, Risk, RiskConfig, Schedule
from dynamic_dpo.methods.risk.drift import describe_monitor, describe_null_drift, null_drift
from dynamic_dpo.methods.risk.monitor import Monitor


def risk(**settings: object) -> Risk:
    return Risk(RiskConfig(**{"warmup_steps": 1, **settings}))  # type: ignore[arg-type]


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- equations ----


@pytest.mark.parametrize(("n", "rate"), [(1, 0.1), (16, 0.1), (16, 0.999), (700, 0.003), (5000, 0.1)])
def test_the_binomial_law_agrees_with_scipy(n: int, rate: float) -> None:
    law = binomial_law(n, rate)
    assert law == pytest.approx(binom(n, rate).pmf(range(n + 1)), rel=1e-9, abs=1e-300)
    assert math.fsum(law) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("n", "delta"), [(1, 0.1), (4, 0.1), (16, 0.1), (16, 0.5), (512, 0.05)])
def test_mid_p_scores_have_mean_zero_and_rise_with_the_count(n: int, delta: float) -> None:
    scores = mid_p_scores(n, delta)
    assert math.fsum(p * s for p, s in zip(binomial_law(n, delta), scores, strict=True)) == pytest.approx(
        0.0, abs=1e-12
    )
    assert list(scores) == sorted(scores)
    assert all(-1 <= s <= 1 for s in scores)


def test_a_score_is_one_minus_twice_the_mid_p_value() -> None:
    law = binom(16, 0.1)
    for k in range(17):
        mid_p = law.sf(k) + law.pmf(k) / 2
        assert mid_p_scores(16, 0.1)[k] == pytest.approx(1 - 2 * mid_p, abs=1e-12)
    assert centred_scores([1.0]) == (0.0,)


def test_ties_score_the_mean_over_their_chances_of_exceeding() -> None:
    # One above, two ties, n = 4, delta .5: k = 1, 2, 3 with chances 1/4, 1/2, 1/4; the law is symmetric about 2.
    assert tied_mid_p_score(1, 2, n=4, delta=0.5) == pytest.approx(0.0, abs=1e-15)
    low, high = mid_p_scores(4, 0.1)[0], mid_p_scores(4, 0.1)[1]
    assert tied_mid_p_score(0, 1, n=4, delta=0.1) == pytest.approx(0.9 * low + 0.1 * high)


def test_the_gain_makes_tau_forget_at_the_rate_momentum() -> None:
    assert quantile_gain(0.1, 0.1) * norm.pdf(norm.ppf(0.9)) == pytest.approx(0.1)
    assert quantile_gain(0.1, 0.1) == pytest.approx(0.1 / 0.17550, rel=1e-4)


def test_an_e_value_has_mean_one_where_delta_is_true() -> None:
    mean = math.fsum(p * math.exp(log_e_value(k, 16, 0.1, 0.2)) for k, p in enumerate(binomial_law(16, 0.1)))
    assert mean == pytest.approx(1.0, abs=1e-12)


# ---- rm ----


def test_rm_worked_by_hand() -> None:
    method = risk(mode="rm", delta=0.25, momentum=0.5, alpha=0.1, beta_0=0.2)
    method.observe(torch.arange(17.0))  # 0 … 16: the .75-quantile is 12, the quartiles 4 and 12
    test = method.test
    assert (test.tau, test.scale) == (12.0, pytest.approx(8 / 1.349))  # type: ignore[attr-defined]
    reading = method.observe(torch.tensor([13.0, 14.0, 0.0, 0.0]))
    # Two of four above 12: tested before tau moves.
    assert (reading["risk/tau"], reading["risk/p_hat"]) == (12.0, 0.5)
    assert reading["risk/u"] == pytest.approx(0.25 / math.sqrt(0.25 * 0.75 / 4))
    # Binomial(4, 1/4): P(K < 2) = (81 + 108)/256, P(K > 2) = (12 + 1)/256.
    assert reading["risk/s"] == pytest.approx((189 - 13) / 256)
    assert method.beta == pytest.approx(0.2 * math.exp(0.1 * 176 / 256))
    # φ(Φ⁻¹(.75)) = .31777; tau moves by .5/.31777 · 8/1.349 · (.5 - .25).
    assert test.tau == pytest.approx(12 + 0.5 / 0.31777657 * 8 / 1.349 * 0.25, rel=1e-6)  # type: ignore[attr-defined]


def test_rm_finds_the_quantile_and_keeps_it_in_constant_memory() -> None:
    method, draw = risk(mode="rm", momentum=0.1, warmup_steps=3), noise()
    taus = [method.observe(5 + 3 * torch.randn(16, generator=draw)).get("risk/tau") for _ in range(3000)]
    settled = [tau for tau in taus[200:] if tau is not None]
    assert sum(settled) / len(settled) == pytest.approx(5 + 3 * 1.28155, abs=0.1)
    assert len(json.dumps(method.state_dict())) < 1500


def test_rm_does_not_drift_on_noise() -> None:
    for n in (4, 16, 64):
        drift = null_drift(RiskConfig(mode="rm", momentum=0.1), n, updates=1000, chains=64)
        assert abs(drift.per_1000) <= 0.02


def test_rm_takes_its_scale_from_later_batches_where_the_warm_up_was_constant() -> None:
    method, draw = risk(mode="rm", momentum=0.1), noise()
    method.observe(torch.zeros(16))
    for _ in range(500):
        reading = method.observe(10 + torch.randn(1, generator=draw))
    assert reading["risk/tau"] == pytest.approx(10 + 1.28, abs=1.0)


@pytest.mark.parametrize("mode", ["rm", "target"])
def test_a_batch_that_lies_on_the_threshold_says_nothing(mode: str) -> None:
    method = risk(mode=mode, margin_budget=0.0, alpha=0.1)
    for _ in range(50):
        reading = method.observe(torch.zeros(16))
    assert reading["risk/p_hat"] == pytest.approx(0.1)
    assert method.beta == pytest.approx(0.1, rel=1e-12)


# ---- target ----


def test_target_worked_by_hand() -> None:
    method = risk(
        mode="target", delta=0.25, momentum=0.5, margin_budget=10.0, gain_p=1.0, gain_i=0.1, beta_0=0.2
    )
    assert method.observe(torch.tensor([99.0]))["risk/warmup"] == 1.0
    reading = method.observe(torch.tensor([13.0, 14.0, 0.0, 0.0]))
    s = 176 / 256  # as in rm
    assert reading["risk/s"] == pytest.approx(s)
    assert reading["risk/error"] == pytest.approx(s / 2)
    assert method.beta == pytest.approx(0.2 * math.exp(s / 2 + 0.1 * s / 2))
    again = method.observe(torch.tensor([13.0, 14.0, 0.0, 0.0]))
    assert again["risk/error"] == pytest.approx(0.75 * s)
    assert again["risk/integral"] == pytest.approx(s / 2 + 0.75 * s)


def margins_under(beta: float, draw: torch.Generator) -> torch.Tensor:
    """A toy policy whose margins settle at a height that falls with beta, as those of training do."""
    return 2.0 / beta**0.5 + 2 * torch.randn(16, generator=draw)


def test_target_holds_the_tail_at_the_budget_in_a_closed_loop() -> None:
    # The .9-quantile 2/√beta + 2.56 meets the budget 9 at beta = (2/6.44)² = .0965, from .5 and from .02.
    for beta_0 in (0.5, 0.02):
        method, draw = risk(mode="target", margin_budget=9.0, beta_0=beta_0), noise()
        rates = []
        for _ in range(6000):
            rates.append(method.observe(margins_under(method.beta, draw)).get("risk/p_hat", math.nan))
        assert sum(rates[-2000:]) / 2000 == pytest.approx(0.1, abs=0.02)
        assert method.beta == pytest.approx(0.0965, rel=0.5)


def test_a_saturated_integral_lets_go_at_once() -> None:
    method = risk(mode="target", margin_budget=0.0, beta_max=0.2, gain_i=0.05, momentum=1.0)
    for _ in range(5000):
        method.observe(torch.full((16,), 5.0))
    assert method.beta == 0.2
    for _ in range(40):
        method.observe(torch.full((16,), -5.0))
    # Forty updates at -1·.05 = -2 nats: an integral that had gone on counting would need 5,000 to return.
    assert method.beta < 0.1


def test_alpha_scale_multiplies_the_integral_gain_of_target() -> None:
    slow = risk(mode="target", margin_budget=0.0, gain_i=0.01, alpha_scale=4.0)
    fast = risk(mode="target", margin_budget=0.0, gain_i=0.04)
    for k in range(10):
        margins = torch.arange(16.0) + k - 8
        assert slow.observe(margins)["risk/beta"] == fast.observe(margins)["risk/beta"]


def test_target_needs_a_budget() -> None:
    with pytest.raises(ConfigError, match="margin_budget is needed by mode target: The margin in nats"):
        RiskConfig(mode="target")


def test_a_sum_for_another_budget_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"margin_budget 1\.0, this run has 2\.0"):
        risk(mode="target", margin_budget=2.0).load_state_dict(
            risk(mode="target", margin_budget=1.0).state_dict()
        )


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fast"}, "mode must be one of 'paper', 'exact', 'rm', 'target', got 'fast'"),
        ({"monitor": "on"}, "monitor must be one of 'off', 'report', 'warn', 'stop'"),
        ({"alpha_scale": "automatic"}, "alpha_scale must be a finite number, or 'auto'"),
        ({"monitor_rate": 0.1}, r"monitor_rate must be above delta \(0.1\), got 0.1"),
        ({"monitor_threshold": 1.0}, "monitor_threshold must be greater than 1, got 1.0"),
        ({"margin_budget": math.nan}, "margin_budget must be a finite number, got nan"),
        ({"gain_i": -1.0}, "gain_i must be at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RiskConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("beta_0", "beta_min", "beta_max"),
    [
        (0.0, 0.0, 2.0),
        (-0.1, 0.0, 2.0),
        (math.nan, 0.0, 2.0),
        (math.inf, 0.0, math.inf),
        (0.1, 0.2, 2.0),
        (0.1, 0.0, 0.05),
        (0.1, -0.1, 2.0),
        (0.1, math.nan, 2.0),
        (0.1, 0.0, math.nan),
        (0.1, 0.0, math.inf),
        (0.1, 0.5, 0.3),
    ],
)
def test_bounds_that_do_not_enclose_a_positive_beta_are_refused(
    beta_0: float, beta_min: float, beta_max: float
) -> None:
    with pytest.raises(ConfigError, match=r"^beta_(0|min|max) must be"):
        RiskConfig(beta_0=beta_0, beta_min=beta_min, beta_max=beta_max)


def test_alpha_scale_auto_counts_the_device_batches_of_an_update() -> None:
    config = RiskConfig(alpha_scale="auto", scope="step")
    # 4 ranks × accumulation 8 × device batch 2 = 64 pairs: 32 device batches.
    method = Risk(config, pairs_per_update=64, device_batch=2)
    assert method.config.scale == 32.0
    assert any("alpha_scale auto: 32" in note for note in method.start_notes(10))
    with pytest.raises(ConfigError, match="needs to know the device batch"):
        Risk(config, pairs_per_update=64)


def test_alpha_scale_auto_reaches_the_controllers_that_are_built_from_settings() -> None:
    config = RiskConfig(alpha_scale="auto", scope="step", warmup_steps=1)
    context = BuildContext(asdict(config), 0.1, "step", pairs_per_update=lambda scope: 8, device_batch=2)
    assert Risk.build(context).config.scale == 4.0
    plain = BuildContext({"warmup_steps": 1}, 0.1, "micro", pairs_per_update=lambda scope: 8)
    drift = Schedule.build(context).config.drift_per_1000
    assert drift == pytest.approx(4 * Schedule.build(plain).config.drift_per_1000)


# ---- monitor ----


def test_the_monitor_worked_by_hand() -> None:
    monitor = Monitor(RiskConfig(delta=0.5, monitor="report", monitor_rate=0.75, monitor_threshold=3.0))
    # e = 1.5 for an exceedance, .5 for none: R = 1.5, (1 + 1.5)·.5 = 1.25, 2.25·1.5 = 3.375 >= 3.
    for p_hat, expected in ((1.0, 1.5), (0.0, 1.25)):
        assert not monitor.observe(p_hat=p_hat, n=1)
        assert monitor.metrics()["risk/monitor"] == pytest.approx(math.log(expected))
    assert monitor.observe(p_hat=1.0, n=1)
    assert monitor.metrics() == {"risk/monitor": pytest.approx(math.log(3.375)), "risk/alarms": 1.0}
    # It starts again from nothing.
    assert not monitor.observe(p_hat=1.0, n=1)
    assert monitor.metrics()["risk/monitor"] == pytest.approx(math.log(1.5))


def test_the_monitor_does_not_overflow_on_huge_batches() -> None:
    monitor = Monitor(RiskConfig(monitor="report"))
    assert monitor.observe(p_hat=1.0, n=100_000)
    assert not monitor.observe(p_hat=0.0, n=100_000)
    assert math.isfinite(monitor.metrics()["risk/monitor"])
    assert monitor.log_sum == 0.0


def watched(mode: str) -> Risk:
    method = risk(mode="exact", alpha=0.01, monitor=mode)
    draw = noise()
    for _ in range(60):
        method.observe(torch.randn(16, generator=draw))
    return method


def grow(method: Risk, updates: int) -> list[dict[str, float]]:
    draw = noise(seed=1)
    return [method.observe(0.3 * k + torch.randn(16, generator=draw)) for k in range(updates)]


def test_an_alarm_is_counted_and_changes_nothing_else() -> None:
    off, report = watched("off"), watched("report")
    before, after = grow(off, 60), grow(report, 60)
    assert after[-1]["risk/alarms"] >= 1
    assert report.summary()["alarms"] == after[-1]["risk/alarms"]
    assert [reading["risk/beta"] for reading in before] == [reading["risk/beta"] for reading in after]
    assert "risk/alarms" not in before[-1]
    assert report.stop_reason is None


def test_warn_says_so(caplog: pytest.LogCaptureFixture) -> None:
    method = watched("warn")
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        grow(method, 60)
    assert "the rate of exceedance has risen from the tolerated 0.1 towards 0.2" in caplog.text


def test_stop_gives_a_reason_and_a_state_that_goes_on() -> None:
    method = watched("stop")
    grow(method, 60)
    assert method.stop_reason
    resumed = risk(mode="exact", alpha=0.01, monitor="stop")
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert resumed.stop_reason is None
    draw = noise(seed=3)
    for _ in range(30):
        margins = 20 + torch.randn(16, generator=draw)
        assert resumed.observe(margins) == method.observe(margins)


def test_a_monitor_switched_on_at_a_resume_starts_from_nothing() -> None:
    method = watched("report")
    method.load_state_dict(watched("off").state_dict())
    assert method.monitor is not None
    assert (method.monitor.log_sum, method.monitor.num_alarms) == (0.0, 0)


def test_the_start_notes_say_what_an_alarm_means() -> None:
    for mode in ("paper", "exact", "rm", "target"):
        config = RiskConfig(mode=mode, monitor="warn", margin_budget=3.0)  # type: ignore[arg-type]
        note = describe_monitor(config)
        assert ("no evidence here" in note) == (mode == "paper")
        assert Risk(config).start_notes(200)[-1] == note
    assert "exceeds 3 nats" in describe_null_drift(RiskConfig(mode="target", margin_budget=3.0), 16, 100)
