"""The threshold's estimators against numpy, and what must never reach them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.utils.quantile import EMAUpdate, WarmupQuantileAccumulator

margins = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> None:
    # A trainer in an earlier test has set the process to flush them; drawing floats needs them.
    torch.set_flush_denormal(False)


@settings(deadline=None, max_examples=80)
@given(batches=st.lists(margins, min_size=1, max_size=6), q=st.floats(0, 1))
def test_the_warm_up_gives_numpys_quantile_of_everything_collected(
    batches: list[list[float]], q: float
) -> None:
    warmup = WarmupQuantileAccumulator(q)
    for batch in batches:
        warmup.update(batch)
    everything = np.concatenate(batches)
    assert warmup.finalize() == pytest.approx(np.quantile(everything, q), rel=1e-5, abs=2e-5)


@settings(deadline=None, max_examples=80)
@given(tau=st.floats(-50, 50), batch=margins, momentum=st.floats(0, 1))
def test_the_average_moves_towards_the_batch_by_its_momentum(
    tau: float, batch: list[float], momentum: float
) -> None:
    ema = EMAUpdate(tau, 0.9, momentum)
    target = float(torch.quantile(torch.tensor(batch), 0.9))
    moved = ema.update_tau(torch.tensor(batch))
    assert moved == ema.tau == (1.0 - momentum) * tau + momentum * target


def test_more_values_than_torch_can_sort_interpolate_alike() -> None:
    values = torch.randn(2**24 + 3, generator=torch.Generator().manual_seed(0))
    warmup = WarmupQuantileAccumulator(0.9)
    warmup.update(values)
    assert warmup.finalize() == pytest.approx(float(np.quantile(values.numpy(), 0.9)), abs=1e-6)


def test_a_batch_is_kept_as_it_was_without_its_graph() -> None:
    batch = torch.tensor([1.0, 2.0], requires_grad=True)
    warmup = WarmupQuantileAccumulator(0.5)
    warmup.update(batch * 1.0)
    assert not warmup.batches[0].requires_grad
    assert warmup.finalize() == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_would_stay_for_ever_is_refused_and_changes_nothing(bad: float) -> None:
    ema, warmup = EMAUpdate(1.0, 0.9, 0.5), WarmupQuantileAccumulator(0.9)
    for update in (ema.update_tau, warmup.update):
        with pytest.raises(ValueError, match="stay in tau for ever"):
            update([1.0, bad])
    assert ema.tau == 1.0
    assert warmup.batches == []


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="batch_margins is empty"):
        EMAUpdate(0.0, 0.9, 0.5).update_tau([])
    with pytest.raises(ValueError, match="no margins were collected"):
        WarmupQuantileAccumulator(0.9).finalize()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], got 1.5"):
        WarmupQuantileAccumulator(1.5)
    with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], got nan"):
        EMAUpdate(0.0, math.nan, 0.5)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 2"):
        EMAUpdate(0.0, 0.9, 2.0)
    with pytest.raises(ValueError, match="tau_0 must be finite, got nan"):
        EMAUpdate(math.nan, 0.9, 0.5)


def test_a_quantile_between_the_ends_of_float32_does_not_overflow() -> None:
    ema = EMAUpdate(tau_0=0.0, q=0.75, momentum=0.5)
    # Half-way from 0 to 3e38 is 1.5e38, and half of that is taken.
    assert ema.update_tau(torch.tensor([-3e38, 3e38])) == pytest.approx(7.5e37)
    assert ema.update_tau(torch.tensor([-3e38, -3e38])) == pytest.approx(-1.125e38)
