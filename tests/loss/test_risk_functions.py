"""The faithful controller's equations: a trace worked by hand and the recorded golden traces."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.loss import empirical_over_threshold_proportion, risk_test, update_beta
from dynamic_dpo.loss.risk import risk_statistic
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.utils.quantile import EMAUpdate, WarmupQuantileAccumulator

TAU, P_HAT, FAIL, U, S, BETA = range(6)

# delta .25, momentum .5, two batches of warm-up, gamma 1, alpha .1, beta_0 .2.
HAND_WARMUP = ([0.0, 1.0, 2.0], [3.0, 4.0])  # .75-quantile of 0 … 4: tau = 3
HAND_BATCH = [0.0, 2.0, 4.0, 8.0]  # .75-quantile 5, tau = (3 + 5) / 2 = 4, p_hat = 2/4
HAND_U = (0.5 - 0.25) / math.sqrt(0.25 * 0.75 / 4)  # = 2 / sqrt 3
HAND_BETA = 0.2 * math.exp(0.1 * math.tanh(2 / math.sqrt(3)))
HAND_RISK = RiskConfig(
    delta=0.25, momentum=0.5, warmup_steps=2, gamma=1.0, alpha=0.1, beta_0=0.2, beta_min=0.0, beta_max=2.0
)


def golden(folder: Path, number: int) -> tuple[dict[str, Any], list[torch.Tensor], np.ndarray]:
    path = folder / "golden" / "risk_paper.npz"
    if not path.is_file():
        pytest.skip("the golden traces are absent")
    with np.load(path) as data:
        meta = json.loads(str(data["meta"]))[number]
        margins = [torch.from_numpy(row[~np.isnan(row)]) for row in data[f"margins_{number}"]]
        return meta, margins, data[f"trace_{number}"]


def assert_follows(trace: np.ndarray, golden_trace: np.ndarray) -> None:
    """tau and beta to 1e-12 (absolute or relative), the readings too; NaN exactly in warm-up."""
    assert trace.shape == golden_trace.shape
    np.testing.assert_allclose(trace, golden_trace, rtol=1e-12, atol=1e-12, equal_nan=True)


def _quantile_of(margins: torch.Tensor, q: float) -> float:
    accumulator = WarmupQuantileAccumulator(q)
    accumulator.update(margins)
    return accumulator.finalize()


def test_a_trace_worked_by_hand_through_the_public_functions() -> None:
    warmup = WarmupQuantileAccumulator(0.75)
    for batch in HAND_WARMUP:
        warmup.update(torch.tensor(batch))
    threshold = EMAUpdate(warmup.finalize(), 0.75, momentum=0.5)
    assert threshold.tau == 3.0
    margins = torch.tensor(HAND_BATCH)
    assert threshold.update_tau(margins) == 4.0
    p_hat = empirical_over_threshold_proportion(margins, 4.0)
    assert p_hat == 0.5  # the margin equal to tau counts
    assert risk_test(p_hat, 0.25)
    update = update_beta(0.2, p_hat, 0.25, alpha=0.1, n=4, gamma=1.0, beta_min=0.0, beta_max=2.0)
    assert update == pytest.approx((HAND_BETA, HAND_U, math.tanh(HAND_U), 0.1), abs=1e-15)
    assert pytest.approx(2 / math.sqrt(3)) == HAND_U


def test_the_same_trace_worked_by_hand_through_the_method() -> None:
    method = Risk(HAND_RISK)
    for batch in HAND_WARMUP:
        assert method.observe(torch.tensor(batch)) == {
            "risk/beta": 0.2,
            "risk/warmup": 1.0,
            "risk/delta": 0.25,
        }
    first = method.observe(torch.tensor(HAND_BATCH))
    assert first == pytest.approx(
        {
            "risk/beta": HAND_BETA,
            "risk/warmup": 0.0,
            "risk/delta": 0.25,
            "risk/tau": 4.0,
            "risk/p_hat": 0.5,
            "risk/fail": 1.0,
            "risk/u": HAND_U,
            "risk/s": math.tanh(HAND_U),
        },
        abs=1e-15,
    )
    # Four zeros: quantile 0, tau = 2, none reaches it; u is as far below 0 as it was above, beta comes back.
    second = method.observe(torch.zeros(4))
    assert (second["risk/tau"], second["risk/p_hat"], second["risk/fail"]) == (2.0, 0.0, 0.0)
    assert second["risk/u"] == pytest.approx(-HAND_U)
    assert method.beta == pytest.approx(0.2, rel=1e-15)


@pytest.mark.parametrize("number", range(4))
def test_golden_traces_through_the_public_functions(shared_folder: Path, number: int) -> None:
    meta, batches, expected = golden(shared_folder, number)
    q, beta = 1.0 - meta["delta"], meta["b0"]
    warmup, threshold = WarmupQuantileAccumulator(q), None
    trace = np.full((len(batches), 6), np.nan)
    for k, margins in enumerate(batches):
        trace[k, TAU], trace[k, BETA] = 0.0, beta
        if threshold is None:
            warmup.update(margins)
            if k + 1 == meta["warm"]:
                threshold = EMAUpdate(warmup.finalize(), q, meta["lam"])
                trace[k, TAU] = threshold.tau
            continue
        tau = threshold.update_tau(margins)
        p_hat = empirical_over_threshold_proportion(margins, tau)
        beta, u, s, _ = update_beta(
            beta, p_hat, meta["delta"], meta["alpha"], len(margins), meta["gamma"], meta["bmin"], meta["bmax"]
        )
        trace[k] = tau, p_hat, risk_test(p_hat, meta["delta"]), u, s, beta
    assert_follows(trace, expected)


@pytest.mark.parametrize("number", range(4))
def test_golden_traces_through_the_method(shared_folder: Path, number: int) -> None:
    meta, batches, expected = golden(shared_folder, number)
    method = Risk(
        RiskConfig(
            delta=meta["delta"],
            momentum=meta["lam"],
            beta_0=meta["b0"],
            alpha=meta["alpha"],
            gamma=meta["gamma"],
            beta_min=meta["bmin"],
            beta_max=meta["bmax"],
            warmup_steps=meta["warm"],
        )
    )
    trace = np.full((len(batches), 6), np.nan)
    for k, margins in enumerate(batches):
        reading = method.observe(margins)
        assert reading["risk/warmup"] == float(k < meta["warm"])
        names = ("tau", "p_hat", "fail", "u", "s", "beta")
        trace[k] = [reading.get(f"risk/{name}", np.nan) for name in names]
        trace[k, BETA] = method.beta
        if k < meta["warm"]:
            trace[k, TAU] = method.test.tau or 0.0
    assert_follows(trace, expected)


def test_beta_stops_at_its_bounds() -> None:
    def pushed(beta: float, p_hat: float) -> float:
        return update_beta(beta, p_hat, 0.1, alpha=1.0, n=16, gamma=2.0, beta_min=0.05, beta_max=0.3).beta_new

    assert pushed(0.29, 1.0) == 0.3
    assert pushed(0.06, 0.0) == 0.05


@pytest.mark.parametrize("p_hat", [0.0, 0.1, 1.0])
def test_the_statistic_is_squashed_and_has_the_sign_of_the_excess(p_hat: float) -> None:
    u, s = risk_statistic(p_hat, delta=0.1, n=16, gamma=2.0)
    assert abs(s) < 1 or s == 1.0  # tanh rounds to 1 at u = 12
    assert math.copysign(1, s) == math.copysign(1, u)
    assert s == math.tanh(2.0 * u)


def test_the_upper_quantile_interpolates_in_float32() -> None:
    assert _quantile_of(torch.tensor([0.0, 10.0]), 0.9) == float(torch.tensor(9.0))
    with pytest.raises(ValueError, match="empty"):
        _quantile_of(torch.zeros(0), 0.5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 1.2, math.nan])
def test_a_delta_outside_the_open_unit_interval_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=r"delta must lie in \(0, 1\)"):
        risk_statistic(0.1, delta, n=16, gamma=2.0)


def test_rates_that_no_margin_stands_behind_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        empirical_over_threshold_proportion(torch.zeros(0), 0.0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        risk_statistic(0.1, 0.1, n=0, gamma=2.0)
    with pytest.raises(ValueError, match="NaN"):
        risk_statistic(math.nan, 0.1, n=16, gamma=2.0)
