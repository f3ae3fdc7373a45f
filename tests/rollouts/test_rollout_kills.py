"""Rollouts and loops that are killed end as those that are not; `tests/torture` does it sixty times."""

from __future__ import annotations

import signal

import pytest

from torture.rolling import kill_loops, kill_rollouts


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("cycles", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_rollout_ends_as_one_that_was_not(number: int, cycles: int) -> None:
    outcome = kill_rollouts(cycles, number=number)
    assert outcome.different == []
    assert outcome.kills >= cycles


@pytest.mark.parametrize("cycles", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_loop_ends_as_one_that_was_not(cycles: int) -> None:
    outcome = kill_loops(cycles)
    assert outcome.different == []
    assert outcome.kills >= cycles
