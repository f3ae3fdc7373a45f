"""Which evaluation is the best, and when a run has waited long enough: numbers alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.keep_best import BestSoFar, KeepBest


def after(values: list[float], **settings: Any) -> BestSoFar:
    best = BestSoFar(KeepBest(**settings))
    for number, value in enumerate(values, start=1):
        best.observe(10 * number, value, beta=0.1 * number)
    return best


@pytest.mark.parametrize(
    ("metric", "name", "greater"),
    [
        ("eval_loss", "eval_loss", False),
        ("loss", "eval_loss", False),
        ("eval_accuracy", "eval_rewards/accuracies", True),
        ("accuracy", "eval_rewards/accuracies", True),
        ("rewards/margins", "eval_rewards/margins", True),
        ("eval_logps/rejected", "eval_logps/rejected", False),
        ("eval_other_loss", "eval_other_loss", False),
    ],
)
def test_a_metric_has_the_name_of_the_log_and_a_direction(metric: str, name: str, greater: bool) -> None:
    settings = KeepBest(metric)
    assert (settings.name, settings.wants_greater) == (name, greater)
    assert KeepBest(metric, greater_is_better=not greater).wants_greater is not greater


def test_the_best_is_kept_however_small_its_lead_and_the_first_of_equals() -> None:
    best = after([0.69, 0.60, 0.599, 0.599, 0.7], min_delta=0.05)
    assert (best.step, best.value, best.beta) == (30, 0.599, pytest.approx(0.3))
    assert (best.last_step, best.last_value, best.num_evaluations) == (50, 0.7, 5)
    assert after([0.5, 0.7, 0.6], metric="eval_accuracy").step == 20


@pytest.mark.parametrize(
    ("values", "min_delta", "waited"),
    [
        ([0.69], 0.0, 0),
        ([0.69, 0.60, 0.61, 0.62], 0.0, 2),
        ([0.69, 0.69, 0.69], 0.0, 2),
        ([0.69, 0.66, 0.63], 0.05, 0),  # Two small gains are one in the end.
        ([0.69, 0.66, 0.66], 0.05, 2),
        ([math.nan, math.inf, 0.7, math.nan], 0.0, 1),
    ],
)
def test_an_improvement_is_measured_from_the_one_before(
    values: list[float], min_delta: float, waited: int
) -> None:
    best = after(values, patience=2, min_delta=min_delta)
    assert best.num_waited == waited
    assert best.is_out_of_patience is (waited >= 2)
    assert not after(values, min_delta=min_delta).is_out_of_patience


def test_what_is_no_number_is_never_the_best() -> None:
    best = after([math.nan, -math.inf, math.inf])
    assert (best.step, best.num_waited) == (None, 3)
    assert "no evaluation gave a finite eval_loss" in best.what_is_kept()
    assert after([math.nan, 0.7]).step == 20
    assert BestSoFar(KeepBest()).summary()["last_step"] is None


@pytest.mark.parametrize("values", [[], [math.nan], [0.1 + 0.2, 0.6, math.nan], [0.69, 0.66]])
def test_bookkeeping_that_was_put_back_is_the_same_to_the_bit(values: list[float]) -> None:
    settings: dict[str, Any] = {"patience": 3, "min_delta": 0.05}
    best, other = after(values, **settings), BestSoFar(KeepBest(**settings))
    other.load_state_dict(json.loads(json.dumps(best.state_dict(), allow_nan=False)))
    assert other.state_dict() == best.state_dict()
    for step, value in ((900, 0.5), (910, 0.49), (920, 0.6)):
        assert other.observe(step, value) is best.observe(step, value)
    assert other.state_dict() == best.state_dict()


def test_more_patience_goes_on_where_less_has_ended() -> None:
    ended, longer = after([0.6, 0.7], patience=1), BestSoFar(KeepBest(patience=2))
    longer.load_state_dict(ended.state_dict())
    assert (ended.is_out_of_patience, longer.is_out_of_patience) == (True, False)


def test_the_reasons_are_sentences() -> None:
    best = after([0.69, 0.60, 0.61, 0.62], patience=2, min_delta=0.01)
    assert best.why_it_ended() == (
        "eval_loss had not improved by more than 0.01 at the last 2 evaluations (patience 2)"
    )
    assert best.what_is_kept() == (
        "the weights of step 20 are kept, eval_loss 0.6; the last evaluation, at step 40, had 0.62"
    )
    assert after([0.6]).what_is_kept().endswith("it is the last evaluation's")
    assert after([0.6]).why_it_ended() == "it made all of its steps"
    assert "at the last evaluation (patience 1)" in after([0.6, 0.7], patience=1).why_it_ended()


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"patience": 0}, "patience must be at least 1"),
        ({"min_delta": -1.0}, "min_delta must be at least 0"),
        ({"metric": ""}, "metric must not be empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            KeepBest(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no evaluation logs eval_los: choose one of eval_a, eval_loss"):
        KeepBest("los").value_in({"eval_loss": 1.0, "epoch": 1.0, "eval_a": 2.0})
