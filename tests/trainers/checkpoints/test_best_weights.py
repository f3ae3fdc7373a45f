"""A run that keeps its best weights: they are what it writes, and it resumes as if nothing had been."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.runs.files import BEST_WEIGHTS
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.runs.page import write_run_report
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.saved import save_and_check
from dynamic_dpo.utils.signals import Interrupted, stop_signals
from helpers_ranks import SECONDS, launched
from overfitting import EVALUATED_EVERY, evaluations, lawful_pairs, overfitting_run
from tiny import tiny_llama, word_tokenizer
from torture.boundaries import KEEPING, strike
from torture.tiny_run import NOT_COMPARED


def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def held_out_loss(model: Any, folder: Path, **settings: Any) -> float:
    """Return the loss on held-out pairs of a model that was read from its files, by a trainer of its own."""
    other = overfitting_run(folder, model=str(model), **settings)
    return float(other.evaluate()["eval_loss"])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_model_that_is_written_is_the_best_one(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    adapter = {} if kind == "full" else {"peft_config": lora()}
    trainer = overfitting_run(tmp_path / "run", KeepBest(), model=str(base), **adapter)
    trainer.train()
    save_and_check(trainer, tmp_path / "model")

    losses = evaluations(trainer)
    assert len(losses) == 40
    assert 1 < losses.index(min(losses)) + 1 < 20
    assert losses[-1] > 1.2 * min(losses)
    found = held_out_loss(tmp_path / "model", tmp_path / "other", ref_model=str(base))
    assert found <= 1.02 * min(losses)
    assert found == pytest.approx(min(losses), rel=1e-5)

    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())["keep_best"]
    step = EVALUATED_EVERY * (losses.index(min(losses)) + 1)
    assert (summary["step"], summary["value"]) == (step, min(losses))
    assert (summary["last_step"], summary["last_value"]) == (80, losses[-1])
    assert (summary["stopped_early"], summary["evaluations"], summary["beta"]) == (False, 40, 2.0)
    # The model has them now: nothing is left that an upload would take along.
    assert not (tmp_path / "run" / BEST_WEIGHTS).parent.exists()


def test_without_it_the_last_weights_are_written(tmp_path: Path) -> None:
    trainer = overfitting_run(tmp_path / "run")
    trainer.train()
    losses = evaluations(trainer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert json.loads((tmp_path / "run" / "run_summary.json").read_text())["keep_best"] is None


def test_a_run_ends_when_it_has_waited_long_enough_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = overfitting_run(tmp_path / "run", KeepBest(patience=3), save_strategy="steps", save_steps=30)
    with caplog.at_level(logging.INFO, "dynamic_dpo"):
        trainer.train()
    losses = evaluations(trainer)
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3
    ended = EVALUATED_EVERY * len(losses)
    assert trainer.state.global_step == ended < trainer.state.max_steps
    assert (tmp_path / "run" / f"checkpoint-{ended}").is_dir()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert (
        f"the run ends at step {ended}: eval_loss had not improved at the last 3 evaluations" in caplog.text
    )
    assert f"the weights of step {EVALUATED_EVERY * best} are kept" in caplog.text
    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())
    assert summary["keep_best"]["stopped_early"] is True
    page = write_run_report(tmp_path / "run").read_text()
    assert f"step {EVALUATED_EVERY * best}" in page
    assert f"at step {ended}, out of patience" in page


@pytest.mark.parametrize("metric", ["eval_accuracy", "eval_margins/mean"])
def test_another_metric_may_decide(tmp_path: Path, metric: str) -> None:
    settings = KeepBest(metric)
    trainer = overfitting_run(tmp_path / "run", settings, num_train_epochs=8)
    trainer.train()
    values = evaluations(trainer, settings.name)
    assert trainer.best_weights is not None
    assert trainer.best_weights.best.value == max(values)
    assert trainer.best_weights.best.step == min(EVALUATED_EVERY * (values.index(max(values)) + 1), 32)
    assert trainer.evaluate()[settings.name] == pytest.approx(max(values), rel=1e-6)


# ---- resuming ----


class Kill(TrainerCallback):  # type: ignore[misc]
    """Ends the process's work at the n-th evaluation, in one of several ways."""

    def __init__(self, number: int, how: str) -> None:
        self.left, self.how = number, how

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVALUATED_EVERY == 0:
            self.left -= 1
            if self.left == 0 and self.how == "signal before":
                os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.left == 0 and self.how == "in it":
            raise Killed
        if self.left == 0 and self.how == "signal after":
            os.kill(os.getpid(), signal.SIGTERM)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.left == 0 and self.how == "after it":
            raise Killed


class Killed(Exception):
    """Stands for SIGKILL: what is on the disk is all that is left."""


RUN: dict[str, Any] = {
    "num_train_epochs": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 2,
}


def end_of(trainer: PreferenceTrainer) -> dict[str, Any]:
    """Return all that a run has come to."""
    assert trainer.best_weights is not None
    return {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "best": trainer.best_weights.best.state_dict(),
        "history": [
            {key: value for key, value in entry.items() if not key.endswith(NOT_COMPARED)}
            for entry in trainer.state.log_history
        ],
        "step": trainer.state.global_step,
    }


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("how", ["signal before", "in it", "signal after", "after it"])
def test_a_run_that_was_killed_at_any_evaluation_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str, how: str
) -> None:
    keep = KeepBest(patience=4)

    def build(folder: str, *callbacks: Any) -> PreferenceTrainer:
        adapter = {} if kind == "full" else {"peft_config": lora()}
        torch.manual_seed(0)
        return overfitting_run(tmp_path / folder, keep, callbacks=[*callbacks], **RUN, **adapter)

    whole = build("whole")
    whole.train()
    expected = end_of(whole)
    number = len(evaluations(whole))
    assert number in (6, 7)
    for killed in range(1, number + 1):
        first = build(f"run{killed}", Kill(killed, how))
        if killed == number and how == "after it":
            first.train()  # The last evaluation has ended the run: nothing begins after it.
        else:
            with pytest.raises((Killed, Interrupted)), stop_signals():
                first.train()
        resumed = build(f"run{killed}")
        resumed.train(resume_from_checkpoint=resumed.find_checkpoint())
        assert end_of(resumed) == expected, killed


def test_a_finished_run_that_is_resumed_keeps_what_it_kept(tmp_path: Path) -> None:
    first = overfitting_run(tmp_path / "run", KeepBest(patience=2), **RUN)
    first.train()
    again = overfitting_run(tmp_path / "run", KeepBest(patience=2), **RUN)
    again.train(resume_from_checkpoint=True)
    assert end_of(again) == end_of(first)
    # With more patience it goes on from there.
    longer = overfitting_run(tmp_path / "run", KeepBest(patience=4), **RUN)
    longer.train(resume_from_checkpoint=True)
    whole = overfitting_run(tmp_path / "whole", KeepBest(patience=4), **RUN)
    whole.train()
    assert longer.state.global_step > first.state.global_step
    assert end_of(longer) == end_of(whole)


def test_a_signal_in_an_evaluation_that_was_left_over_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    keep = KeepBest(patience=4)
    whole = overfitting_run(tmp_path / "whole", keep, **RUN)
    whole.train()
    first = overfitting_run(tmp_path / "run", keep, callbacks=[Kill(2, "signal before")], **RUN)
    with pytest.raises(Interrupted), stop_signals():
        first.train()
    for _ in range(2):
        second = overfitting_run(tmp_path / "run", keep, **RUN)
        load = second.get_eval_dataloader

        def stopped(*args: Any, load: Callable[..., Any] = load) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return load(*args)

        second.get_eval_dataloader = stopped  # type: ignore[method-assign]
        with pytest.raises(Interrupted), stop_signals():
            second.train(resume_from_checkpoint=True)
        assert second.state.global_step == 2 * EVALUATED_EVERY
    third = overfitting_run(tmp_path / "run", keep, **RUN)
    third.train(resume_from_checkpoint=True)
    assert end_of(third) == end_of(whole)


@pytest.mark.parametrize("how", ["signal before", "after it"])
def test_an_evaluation_at_the_start_counts_and_is_not_made_again(tmp_path: Path, how: str) -> None:
    settings = {**RUN, "eval_on_start": True, "learning_rate": 0.1}
    whole = overfitting_run(tmp_path / "whole", KeepBest(), **settings)
    whole.train()
    expected = end_of(whole)
    # At such a rate no step is as good as none: margins are 0 then, and the loss is ln 2.
    assert (expected["best"]["step"], expected["best"]["value"]) == (0, pytest.approx(math.log(2), rel=1e-5))
    for name, weight in tiny_llama().state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], weight), name
    first = overfitting_run(tmp_path / "run", KeepBest(), callbacks=[Kill(2, how)], **settings)
    with pytest.raises((Killed, Interrupted)), stop_signals():
        first.train()
    resumed = overfitting_run(tmp_path / "run", KeepBest(), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert end_of(resumed) == expected


@pytest.mark.parametrize("patience", [1, 3])
def test_evaluations_by_epoch_end_a_run_whole(tmp_path: Path, patience: int) -> None:
    by_epoch = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
    settings = {**RUN, **by_epoch, "learning_rate": 3e-3}
    trainer = overfitting_run(tmp_path / "run", KeepBest(patience=patience), **settings)
    trainer.train()
    losses = evaluations(trainer)
    assert len(losses) == losses.index(min(losses)) + 1 + patience < 8
    again = overfitting_run(tmp_path / "run", KeepBest(patience=patience), **settings)
    again.train(resume_from_checkpoint=True)
    assert end_of(again) == end_of(trainer)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["kill", "full", "cut"])
def test_no_place_of_disk_access_loses_the_best_weights(kind: str) -> None:
    outcome = strike(kind, sample=12, seed=5, settings=KEEPING)  # type: ignore[arg-type]
    assert outcome.struck == 12
    assert outcome.wrong == []


def test_checkpoints_hold_the_best_weights_and_an_older_one_its_own(tmp_path: Path) -> None:
    trainer = overfitting_run(tmp_path / "run", KeepBest(), **{**RUN, "save_total_limit": None})
    trainer.train()
    run, best = tmp_path / "run", {}
    for step in (3, 6, 32):
        state = json.loads((run / f"checkpoint-{step}" / "controller_state.json").read_text())["best"]
        best[step] = load_file(run / f"checkpoint-{step}" / BEST_WEIGHTS), state
    assert [best[step][1]["step"] for step in (3, 6)] == [2, 6]
    assert any(not torch.equal(best[3][0][name], weight) for name, weight in best[6][0].items())
    # One file under several names, where nothing better came.
    assert (run / "checkpoint-32" / BEST_WEIGHTS).stat().st_nlink > 2
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(best[32][0][name], weight), name


@pytest.mark.parametrize("fault", ["missing", "another model's", "no file of weights"])
def test_a_checkpoint_without_its_best_weights_is_refused(tmp_path: Path, fault: str) -> None:
    from dynamic_dpo.trainers.checkpoints.file_list import write_file_list

    overfitting_run(tmp_path / "run", KeepBest(), **RUN, max_steps=3).train()
    path = tmp_path / "run" / "checkpoint-3" / BEST_WEIGHTS
    path.unlink()
    if fault == "another model's":
        save_file({"w": torch.zeros(2)}, path)
    elif fault == "no file of weights":
        path.write_bytes(b"weights")
    write_file_list(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(CheckpointError, match=r"best/weights\.safetensors .*resume from another checkpoint"):
        overfitting_run(tmp_path / "run", KeepBest(), **RUN, max_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3")
        )


def test_where_a_disk_knows_no_second_names_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    trainer = overfitting_run(tmp_path / "run", KeepBest(), **RUN)
    trainer.train()
    kept = load_file(tmp_path / "run" / "checkpoint-32" / BEST_WEIGHTS)
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(kept[name], weight), name


def test_other_metrics_or_held_out_pairs_are_another_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overfitting_run(tmp_path / "run", KeepBest(), **RUN, max_steps=3).train()
    for keep, held_out in (
        (KeepBest("eval_accuracy"), lawful_pairs(32, seed=1)),
        (KeepBest(greater_is_better=True), lawful_pairs(32, seed=1)),
        (KeepBest(), lawful_pairs(32, seed=2)),
        (None, lawful_pairs(32, seed=1)),
    ):
        with pytest.raises(CheckpointError, match="keep_best: the checkpoint has"):
            overfitting_run(tmp_path / "run", keep, **RUN, max_steps=6, eval_dataset=held_out).train(
                resume_from_checkpoint=True
            )
    overfitting_run(tmp_path / "plain", **RUN, max_steps=3).train()
    later = overfitting_run(tmp_path / "plain", KeepBest(), **RUN, max_steps=6, resume_changed=True)
    later.train(resume_from_checkpoint=True)
    assert "has kept no best weights" in caplog.text
    assert later.best_weights is not None
    assert later.best_weights.best.step == 6


def test_a_second_training_of_one_trainer_begins_anew(tmp_path: Path) -> None:
    trainer = overfitting_run(tmp_path / "run", KeepBest(patience=2), num_train_epochs=8)
    trainer.train()
    assert trainer.best_weights is not None
    assert trainer.best_weights.best.is_out_of_patience
    trainer.train()
    assert trainer.best_weights.best.num_evaluations > 2


def test_numbers_that_are_none_keep_the_last_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = overfitting_run(
        tmp_path / "run",
        KeepBest("eval_own", greater_is_better=True),
        compute_metrics=lambda prediction: {"own": math.nan},
        num_train_epochs=2,
    )
    with caplog.at_level(logging.INFO, "dynamic_dpo"):
        trainer.train()
    assert "the weights of the last step are kept: no evaluation gave a finite eval_own" in caplog.text
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations(trainer)[-1], rel=1e-6)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eval_dataset": None, "eval_strategy": "no"},
            "keep_best chooses by held-out pairs, and there are none: give eval_dataset",
        ),
        (
            {"eval_strategy": "no"},
            "keep_best chooses by evaluations, and the run makes none: set eval_strategy",
        ),
        (
            {"eval_dataset": {"a": lawful_pairs(4, seed=1), "b": lawful_pairs(4, seed=2)}},
            r"no evaluation logs eval_loss: choose one of eval_a_logps/chosen.*eval_b_loss",
        ),
    ],
)
def test_a_run_with_nothing_to_choose_by_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        overfitting_run(tmp_path / "run", KeepBest(), **settings)


def test_one_of_several_sets_may_decide(tmp_path: Path) -> None:
    sets = {"a": lawful_pairs(8, seed=1), "b": lawful_pairs(8, seed=2)}
    trainer = overfitting_run(
        tmp_path / "run", KeepBest("eval_b_loss"), num_train_epochs=8, eval_dataset=sets
    )
    trainer.train()
    losses = evaluations(trainer, "eval_b_loss")
    assert trainer.evaluate()["eval_b_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_metric_of_ones_own_that_is_not_logged_is_named_at_the_first_evaluation(tmp_path: Path) -> None:
    trainer = overfitting_run(
        tmp_path / "run", KeepBest("mine"), compute_metrics=lambda prediction: {"my": 1.0}
    )
    with pytest.raises(ConfigError, match=r"no evaluation logs eval_mine: choose one of .*eval_my"):
        trainer.train()


def test_a_moving_beta_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def risk() -> Risk:
        return Risk(RiskConfig(warmup_steps=1, alpha=0.3, delta=0.25), pairs_per_update=4)

    overfitting_run(tmp_path / "a", KeepBest(), method=risk(), num_train_epochs=1).train()
    assert "the method moves beta: it compares evaluations at different betas" in caplog.text
    caplog.clear()
    overfitting_run(tmp_path / "b", KeepBest("eval_accuracy"), method=risk(), num_train_epochs=1).train()
    overfitting_run(tmp_path / "c", KeepBest(), num_train_epochs=1).train()
    assert "moves beta" not in caplog.text


# ---- in the words of transformers ----


def test_the_arguments_of_transformers_mean_the_same(tmp_path: Path) -> None:
    ours = overfitting_run(tmp_path / "ours", KeepBest(patience=2), **{**RUN, "save_steps": 2})
    ours.train()
    theirs = overfitting_run(
        tmp_path / "theirs",
        **{**RUN, "save_steps": 2},
        load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    theirs.train()
    assert end_of(theirs) == end_of(ours)
    accuracy = overfitting_run(
        tmp_path / "accuracy",
        **{**RUN, "save_steps": 2},
        load_best_model_at_end=True,
        metric_for_best_model="rewards/accuracies",
    )
    assert accuracy.best_weights is not None
    settings = accuracy.best_weights.best.settings
    assert (settings.name, settings.wants_greater, settings.patience) == (
        "eval_rewards/accuracies",
        True,
        None,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"load_best_model_at_end": True, "keep_best": KeepBest()},
            "say the same thing: leave one of them out",
        ),
        ({"callbacks": [EarlyStoppingCallback()], "keep_best": KeepBest()}, "say the same thing"),
        (
            {"callbacks": [EarlyStoppingCallback()]},
            r"set load_best_model_at_end=True beside it, or give keep_best",
        ),
        (
            {"load_best_model_at_end": True, "callbacks": [EarlyStoppingCallback(), EarlyStoppingCallback()]},
            "more than one EarlyStoppingCallback",
        ),
    ],
)
def test_what_is_said_twice_or_by_half_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        overfitting_run(tmp_path / "run", **{**RUN, "save_steps": 2}, **settings)


def test_an_early_stop_that_is_added_later_is_refused(tmp_path: Path) -> None:
    trainer = overfitting_run(tmp_path / "run", **{**RUN, "save_steps": 2}, load_best_model_at_end=True)
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(ConfigError, match="added to a trainer that is made already"):
        trainer.train()


# ---- ranks ----


@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_ranks_keep_the_same_weights_and_go_on_with_them(tmp_path: Path, sharded: bool) -> None:
    first, second = launched("distributed_best.py", tmp_path / "two", ranks=2, sharded=sharded)
    (alone,) = launched("distributed_best.py", tmp_path / "one", ranks=1)
    assert (first["ranks"], alone["ranks"], first["sharded"]) == (2, 1, sharded)
    for name in ("full", "lora"):
        ours, theirs = first[name], alone[name]
        assert ours["best"] == second[name]["best"]
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-4)
        assert ours["kept"] == pytest.approx(min(ours["losses"]), rel=1e-5)
        assert ours["kept"] < 0.9 * ours["losses"][-1]
        assert ours["weights"] == second[name]["weights"]
        # Killed at the evaluation of the best step, and begun again.
        assert ours["resumed"] == {"best": ours["best"], "weights": ours["weights"], "step": ours["step"]}
