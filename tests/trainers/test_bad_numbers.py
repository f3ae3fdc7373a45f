"""NaN and infinity are left out, counted, named and seen; they are neither stored nor hidden."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamic_dpo.engine.reference_store import ReferenceEntry, ReferenceStore, compute_entries, pair_key
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import NonFiniteError
from dynamic_dpo.methods import DPO
from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.guards import MarginGuard
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


class BadGradient(torch.autograd.Function):
    """Passes values on and makes their gradient infinite."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.inf


class BadAt(DPO):
    """DPO whose loss is finite and whose gradient is not, in chosen calls."""

    def __init__(self, calls: set[int], *, loss: float | None = None) -> None:
        super().__init__()
        self.bad_calls, self.loss, self.calls = calls, loss, 0

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        values = super().losses(forward, control)
        self.calls += 1
        if self.calls not in self.bad_calls:
            return values
        return BadGradient.apply(values) if self.loss is None else values * self.loss


def trainer(
    folder: Path, method: DPO, *, arguments: dict[str, Any] | None = None, **settings: Any
) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(
            folder, per_device_train_batch_size=4, learning_rate=1e-2, **(arguments or {})
        ),
        train_dataset=random_pairs(16),
        processing_class=word_tokenizer(),
        method=method,
        **settings,
    )


def test_a_step_with_an_infinite_gradient_is_left_out_counted_and_its_rows_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = trainer(tmp_path, BadAt({1, 2, 3, 4}))
    before = {name: value.clone() for name, value in bad.model.state_dict().items()}
    bad.train()
    assert all(torch.equal(bad.model.state_dict()[name], value) for name, value in before.items())
    assert (bad.guard.num_bad_gradients, bad.guard.num_nonfinite, bad.state.global_step) == (4, 0, 4)
    assert "step 1: the gradient's norm is" in caplog.text
    assert "Its rows on this rank: [" in caplog.text
    assert json.loads((tmp_path / "run_summary.json").read_text())["nonfinite_gradients"] == 4


def test_one_bad_step_costs_one_step(tmp_path: Path) -> None:
    bad = trainer(tmp_path, BadAt({2}))
    bad.train()
    assert bad.guard.num_bad_gradients == 1
    assert all(bool(torch.isfinite(value).all()) for value in bad.model.state_dict().values())


def test_too_many_bad_gradients_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"More than method.max_nonfinite = 1: the run stops"):
        trainer(tmp_path, BadAt({1, 2, 3, 4}), max_nonfinite=1).train()


def test_a_loss_that_is_nan_is_logged_as_nan_and_changes_no_weight(tmp_path: Path) -> None:
    bad = trainer(tmp_path, BadAt({2}, loss=math.nan))
    bad.train()
    losses = [entry["loss"] for entry in bad.state.log_history if "loss" in entry]
    assert [math.isnan(loss) for loss in losses] == [False, True, False, False]
    assert bad.args.logging_nan_inf_filter is False
    assert bad.guard.num_bad_gradients == 1
    assert all(bool(torch.isfinite(value).all()) for value in bad.model.state_dict().values())


def test_a_nan_loss_stays_in_its_own_entry_whatever_is_saved_with_it(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, BadAt({2}, loss=math.nan), arguments=saving).train()
    state = json.loads((tmp_path / "checkpoint-2" / "controller_state.json").read_text())
    assert state["log"]["loss_sums"] == [0.0]
    resumed = trainer(tmp_path, BadAt(set()), arguments=saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    losses = [entry["loss"] for entry in resumed.state.log_history if "loss" in entry]
    assert [math.isnan(loss) for loss in losses] == [False, True, False, False]


def test_a_gradient_after_bad_margins_is_not_counted_twice() -> None:
    guard = MarginGuard(max_nonfinite=5)
    guard.begin_step()
    guard.check_margins(torch.tensor([1.0, math.nan]), [7, 8], num_tokens=torch.tensor([5, 9]), step=3)
    assert guard.check_gradient(math.nan, [7, 8], step=3) is False
    assert guard.state_dict() == {"num_nonfinite": 1, "num_bad_gradients": 0}
    guard.begin_step()
    assert guard.check_gradient(0.5, [9], step=4) is True
    again = MarginGuard(max_nonfinite=5)
    again.load_state_dict(guard.state_dict())
    assert again.num_nonfinite == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reference_that_gives_no_number_is_never_stored_and_its_row_is_named(
    tmp_path: Path, value: float
) -> None:
    store = ReferenceStore(tmp_path, fingerprint="weights", dtype="float32")
    pairs = PairBatch([[0]] * 3, [[1]] * 3, [[i] for i in range(3)], [10, 11, 12])
    keys = [pair_key([0], [1], [i]) for i in range(3)]

    def score(part: PairBatch) -> list[ReferenceEntry]:
        return [ReferenceEntry(value if row == 11 else -1.0, -2.0, 1, 1) for row in part.rows]

    with pytest.raises(NonFiniteError, match=r"gives 1 of 3 pairs .* rows \[11\]"):
        compute_entries(pairs, [[0, 1, 2]], score, store, keys, progress=lambda _: None)
    again = ReferenceStore(tmp_path, fingerprint="weights", dtype="float32")
    assert [key in again for key in keys] == [True, False, True]
    with pytest.raises(NonFiniteError, match="1 of 1 reference log-probabilities"):
        store.add([(keys[1], ReferenceEntry(-1.0, value, 1, 1))])
    assert keys[1] not in store
