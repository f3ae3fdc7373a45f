"""Random margin batches, fair and foul, through every mode: beta stays a number within its bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.risk.config import RiskMode
from dynamic_dpo.methods.schedule import Schedule, ScheduleConfig

CI_BATCHES = 5_000
ALL_BATCHES = 100_000
LOW, HIGH = 0.01, 0.5

CONTROLLERS = {
    **{
        f"{mode}{', drawn rank' if delta != 0.1 else ''}": (mode, delta)
        for mode in get_args(RiskMode)
        for delta in (0.1, 0.1234567)
        if mode == "exact" or delta == 0.1
    },
    "schedule": ("schedule", 0.1),
}


def controller(name: str) -> PreferenceMethod:
    mode, delta = CONTROLLERS[name]
    if mode == "schedule":
        return Schedule(ScheduleConfig(drift_per_1000=20.0, beta_min=LOW, beta_max=HIGH, warmup_steps=5))
    return Risk(
        RiskConfig(
            mode=mode,  # type: ignore[arg-type]
            delta=delta,
            momentum=0.3,
            alpha=0.3,
            gain_i=0.1,
            beta_min=LOW,
            beta_max=HIGH,
            warmup_steps=5,
            window_multiple=3,
            margin_budget=0.0,
            monitor="report",
            monitor_threshold=100.0,
        ),
        pairs_per_update=8,
    )


def foul_batches(count: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of all sizes: heavy tails, ties, constants, huge and tiny values, NaN, infinities, none at all."""
    draw = torch.Generator().manual_seed(seed)
    extremes = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, 1.0, -1.0])
    for _ in range(count):
        kind, size = torch.randint(0, 9, (2,), generator=draw).tolist()
        size = (0, 1, 1, 2, 3, 8, 8, 16, 33)[size]
        level = 10 * torch.randn((), generator=draw)
        values = torch.randn(size, generator=draw)
        if kind == 0:
            yield values**5 + level
        elif kind == 1:
            yield (values + level).round()
        elif kind == 2:
            yield torch.full((size,), float(level.round()))
        elif kind == 3:
            yield extremes[torch.randint(0, len(extremes), (size,), generator=draw)]
        elif kind == 4:
            yield values * 1e38
        elif kind == 5:
            yield values * 1e-42
        elif kind == 6:
            yield torch.where(values > 0.5, math.nan, values)
        elif kind == 7:
            yield torch.zeros(size)
        else:
            yield values + level


def put_through(name: str, batches: int, seed: int) -> None:
    method, moved = controller(name), set()
    for number, margins in enumerate(foul_batches(batches, seed)):
        before = method.state_dict() if number % 50 == 0 else None
        reading = method.observe(margins)
        assert math.isfinite(method.beta), (number, margins)
        assert LOW <= method.beta <= HIGH, (number, margins)
        assert all(math.isfinite(value) for value in reading.values()), (number, margins, reading)
        assert 0.0 <= reading.get("risk/p_hat", 0.0) <= 1.0
        assert -1.0 <= reading.get("risk/s", 0.0) <= 1.0
        moved.add(method.beta)
        if before is not None:
            resumes_alike(name, method, margins, before)
    assert len(moved) > 10, "a beta that stands still proves nothing"


def resumes_alike(name: str, method: PreferenceMethod, margins: torch.Tensor, before: Any) -> None:
    """A copy made from the state's JSON takes the same step and comes to the same state, to the last bit."""
    copy = controller(name)
    copy.load_state_dict(json.loads(json.dumps(before, allow_nan=False)))
    copy.observe(margins)
    assert json.dumps(copy.state_dict(), allow_nan=False) == json.dumps(method.state_dict(), allow_nan=False)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_margins_make_beta_leave_its_bounds(name: str) -> None:
    put_through(name, CI_BATCHES // len(CONTROLLERS), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_hundred_thousand_batches_make_beta_leave_its_bounds(name: str) -> None:
    put_through(name, ALL_BATCHES, seed=1)


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("margins", [[], [math.nan], [math.inf, -math.inf]], ids=["empty", "nan", "infinite"])
def test_nothing_finite_changes_nothing(name: str, margins: list[float]) -> None:
    method = controller(name)
    for batch in foul_batches(200, seed=3):
        method.observe(batch)
    before = json.dumps(method.state_dict())
    method.observe(torch.tensor(margins))
    assert json.dumps(method.state_dict()) == before
