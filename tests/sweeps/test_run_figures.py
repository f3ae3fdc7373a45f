"""The figures of a training, from what it has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.sweeps.figures import figures_of, ranked, with_evaluation


def evaluation(step: int, loss: float, accuracy: float = 0.5) -> dict[str, Any]:
    return {
        "step": step,
        "eval_loss": loss,
        "eval_rewards/accuracies": accuracy,
        "eval_rewards/margins": 0.4,
        "eval_margins/mean": 2.0,
        "eval_rewards/chosen": -0.2,
        "eval_rewards/rejected": -0.6,
    }


def leave(folder: Path, evaluations: list[dict[str, Any]], **summary: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 30, "log_history": [{"step": 1, "loss": 0.7}, *evaluations]})
    )
    facts = {"beta_final": 0.2, "training_seconds": 3.0, "pairs_per_second": 8.0, "reference_computed": 5}
    (folder / "run_summary.json").write_text(json.dumps({**facts, **summary}))
    return folder


def test_the_last_evaluation_counts_and_the_lowest_loss_is_named(tmp_path: Path) -> None:
    folder = leave(tmp_path / "run", [evaluation(10, 0.6), evaluation(20, 0.5), evaluation(30, 0.7, 0.8)])
    figures = figures_of("a", ("x=1",), folder)
    assert (figures.loss, figures.accuracy, figures.step) == (0.7, 0.8, 30)
    assert (figures.best_loss, figures.best_step) == (0.5, 20)
    # Rewards of -.2 and -.6 at beta .4 / 2: answers that are -1 and -3 nats from the reference.
    assert figures.drift == pytest.approx(2.0)


def test_of_a_training_that_kept_its_best_weights_their_evaluation_counts(tmp_path: Path) -> None:
    folder = leave(
        tmp_path / "run",
        [evaluation(10, 0.6), evaluation(20, 0.5), evaluation(30, 0.7)],
        keep_best={"step": 20},
    )
    figures = figures_of("a", (), folder)
    assert (figures.loss, figures.step) == (0.5, 20)


def test_a_margin_of_zero_leaves_the_drift_open(tmp_path: Path) -> None:
    still = evaluation(10, 0.69) | {"eval_margins/mean": 0.0, "eval_rewards/margins": 0.0}
    assert figures_of("a", (), leave(tmp_path / "run", [still])).drift is None


def test_a_training_without_an_evaluation_is_no_part_of_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without an evaluation"):
        figures_of("a", (), leave(tmp_path / "run", []))


def test_the_best_comes_first_and_what_has_no_number_last(tmp_path: Path) -> None:
    losses = {"a": 0.6, "b": float("nan"), "c": 0.5}
    runs = [
        figures_of(name, (), leave(tmp_path / name, [evaluation(1, loss)])) for name, loss in losses.items()
    ]
    assert [run.name for run in ranked(runs, "loss")] == ["c", "a", "b"]
    judged = with_evaluation(
        runs[0],
        {
            "pairs": [
                {"overall": {"model": "z", "rate": 0.1, "interval": {"low": 0.0, "high": 0.2}}},
                {"overall": {"model": "a", "rate": 0.7, "interval": {"low": 0.6, "high": 0.8}}},
            ],
            "frontier": [{"name": "a", "kl": 1.5}],
        },
    )
    assert (judged.win_rate, judged.win_rate_low, judged.win_rate_high, judged.kl) == (0.7, 0.6, 0.8, 1.5)
    assert [run.name for run in ranked([runs[2], judged], "win_rate")] == ["a", "c"]
