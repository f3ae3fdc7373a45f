"""The tortures of `make torture` at small counts: runs killed, starved and damaged come to the very same end."""

from __future__ import annotations

import signal

import pytest

from torture.boundaries import strike
from torture.checkpoint_damage import damage_checkpoints
from torture.evaluating import stop_evaluation
from torture.kill import kill_and_resume
from torture.phases import PHASES, stop_in
from torture.ranks import REFUSED, kill_one, long_run, sharded_steps
from torture.store import damage_store, share


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_and_resumed_ends_bit_for_bit_as_the_uninterrupted_one() -> None:
    outcome = kill_and_resume(20)
    assert outcome.kills >= 20
    assert outcome.different == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["kill", "full", "cut"])
def test_no_place_of_disk_access_loses_a_checkpoint_or_lets_a_damaged_one_in(kind: str) -> None:
    outcome = strike(kind, sample=4, seed=3)  # type: ignore[arg-type]
    assert outcome.places > 150
    assert outcome.struck == 4
    assert outcome.wrong == []


def test_no_damaged_checkpoint_is_loaded() -> None:
    outcome = damage_checkpoints(60)
    assert (outcome.made, outcome.believed) == (60, 0)


def test_no_damaged_reference_is_believed() -> None:
    outcome = damage_store(60)
    assert (outcome.made, outcome.believed) == (60, 0)


def test_processes_share_one_store_while_its_shards_are_damaged() -> None:
    assert share(3, 10) == [0, 0, 0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_loses_nothing(phase: str) -> None:
    outcome = stop_in(phase, 1)
    assert outcome.signals == 1
    assert outcome.wrong == []


@pytest.mark.timeout(600)
def test_a_signal_while_models_write_or_a_judge_is_asked_writes_and_asks_nothing_twice() -> None:
    for phase, outcome in stop_evaluation(2).items():
        assert outcome.signals == 2, phase
        assert outcome.wrong == []


@pytest.mark.timeout(600)
def test_two_ranks_end_in_one_state_replicated_or_sharded() -> None:
    first, second = long_run(10)
    assert first == second
    first, second = sharded_steps(6)
    assert first == second
    assert first["updates"] == 6


@pytest.mark.timeout(600)
def test_a_rank_whose_peer_dies_ends_soon_and_says_so() -> None:
    code, seconds, said = kill_one(4.0, number=signal.SIGKILL)
    assert code == REFUSED
    assert seconds < 60
    assert "another rank of this run has ended or does not answer" in said
