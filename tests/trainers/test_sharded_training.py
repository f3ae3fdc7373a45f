"""FSDP2 by `accelerate launch` and the shipped launch file, on two CPU processes: it trains what one process trains.

Three launches make all runs; see `sharded_training.py` for what they are.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dynamic_dpo.engine.rounding import rounding_tolerance
from helpers_ranks import HERE, SECONDS, run_ranks
from sharded_training import CASES

FLOAT32 = [name for name in CASES if "bf16" not in name]
BF16 = [name for name in CASES if "bf16" in name]
TWENTY_STEPS = ("full", "lora", "tied", "reference")

pytestmark = pytest.mark.timeout(4 * SECONDS)


class Launch(NamedTuple):
    """What the ranks of a launch have left."""

    folder: Path
    ranks: list[dict[str, Any]]

    def weights(self, case: str) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = torch.load(self.folder / f"{case}.pt")
        return weights


def launch(folder: Path, *cases: str, ranks: int, sharded: bool) -> Launch:
    folder.mkdir()
    # Two ranks share two cores with each other and with whatever else is tested.
    status, output = run_ranks(
        [HERE / "sharded_training.py", folder, 8 // ranks, *cases],
        folder,
        ranks,
        sharded=sharded,
        seconds=2 * SECONDS,
    )
    assert status == 0, output[-4000:]
    return Launch(folder, [json.loads((folder / f"result_{r}.json").read_text()) for r in range(ranks)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launch(tmp_path_factory.mktemp("alone") / "runs", *CASES, ranks=1, sharded=False)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("sharded") / "runs"
    resumed = [f"full:{folder}/full/checkpoint-10", f"moving:{folder}/moving/checkpoint-3"]
    return launch(folder, *CASES, *resumed, ranks=2, sharded=True)


@pytest.mark.parametrize("case", FLOAT32)
def test_sharded_ranks_train_what_one_process_trains(alone: Launch, sharded: Launch, case: str) -> None:
    (ours, also_ours), theirs = (rank[case] for rank in sharded.ranks), alone.ranks[0][case]
    assert (ours["sharded"], theirs["sharded"]) == (True, False)
    assert ours["layout"] == theirs["layout"] == ("plain" if case == "bent" else "packed")
    assert ours["separate_head"] == theirs["separate_head"] == (case != "bent")
    assert len(theirs["losses"]) == (20 if case in TWENTY_STEPS else 3 if case == "bent" else 6)

    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-4)
    assert ours["evaluations"] == pytest.approx(theirs["evaluations"], abs=1e-5)
    assert ours.get("before") == pytest.approx(theirs.get("before"), abs=1e-6)
    assert (ours["pairs_seen"], ours["updates"]) == (theirs["pairs_seen"], theirs["updates"])
    assert ours["state"] == also_ours["state"]
    assert ours["losses"] == also_ours["losses"]

    weights = sharded.weights(case)
    for name, values in alone.weights(case).items():
        torch.testing.assert_close(weights[name], values, rtol=0, atol=1e-5, msg=name)


def test_something_was_trained_in_every_case(alone: Launch) -> None:
    for case in CASES:
        assert any(first != second for first, second in pairwise(alone.ranks[0][case]["losses"])), case
        assert all(norm > 0 for norm in alone.ranks[0][case]["norms"]), case


@pytest.mark.parametrize("case", BF16)
def test_bf16_shards_give_float32_margins_as_close_as_rounding_allows(
    alone: Launch, sharded: Launch, case: str
) -> None:
    seen = [entry for rank in sharded.ranks for entry in rank[case]["seen"]]
    assert {(entry["dtype"], entry["reference_dtype"]) for entry in seen} == {("torch.float32",) * 2}
    # What is trained and summed up stays in float32.
    assert sharded.ranks[0][case]["parameter_dtype"] == "torch.float32"

    # In bf16 a sum of -250 nats or more would be a whole number.
    sums = [value for entry in seen for value in (*entry["logps"], *entry["reference"]) if abs(value) > 256]
    assert len(sums) > 10
    assert sum(value == round(value) for value in sums) <= 1

    for step in range(3):
        (ours, tokens), (theirs, _) = (margins_of(each, case, step) for each in (sharded, alone))
        assert len(ours) == (5 if step == 2 else 8)
        allowed = rounding_tolerance(tokens, torch.bfloat16)
        assert bool(((ours - theirs).abs() <= allowed / 2).all())
        assert bool((ours.abs() <= allowed / 4).all()) if step == 0 else bool(ours.abs().max() > 0)


def margins_of(launch: Launch, case: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step's margins, and the tokens behind them, in the order of the data set."""
    entries = [entry for rank in launch.ranks for entry in rank[case]["seen"] if entry["step"] == step]
    columns = (
        [value for entry in entries for value in entry[name]] for name in ("rows", "margins", "tokens")
    )
    table = torch.tensor(sorted(zip(*columns, strict=True)), dtype=torch.float64)
    return table[:, 1], table[:, 2]


@pytest.mark.parametrize("case", ["full", "moving"])
def test_a_sharded_run_goes_on_from_its_checkpoint_to_the_bit(sharded: Launch, case: str) -> None:
    uninterrupted, resumed = (sharded.ranks[0][name] for name in (case, f"{case}_resumed"))
    for what in ("losses", "norms", "evaluations", "state", "pairs_seen"):
        assert resumed[what] == uninterrupted[what], what
    weights = sharded.weights(f"{case}_resumed")
    for name, values in sharded.weights(case).items():
        assert torch.equal(weights[name], values), name


def test_a_sharded_run_goes_on_with_another_number_of_ranks(tmp_path: Path, sharded: Launch) -> None:
    checkpoint = sharded.folder / "full" / "checkpoint-10"
    resumed = launch(tmp_path / "runs", f"full:{checkpoint}", ranks=1, sharded=True)
    theirs, ours = sharded.ranks[0]["full"], resumed.ranks[0]["full_resumed"]
    assert ours["sharded"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    assert (ours["pairs_seen"], ours["updates"]) == (theirs["pairs_seen"], theirs["updates"])
    weights = resumed.weights("full_resumed")
    for name, values in sharded.weights("full").items():
        torch.testing.assert_close(weights[name], values, rtol=0, atol=1e-5, msg=name)
