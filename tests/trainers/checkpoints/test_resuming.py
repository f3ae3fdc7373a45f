"""A resumed run is the uninterrupted run: beta, losses, weights and the margin log."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.methods import DPO, PreferenceMethod, Risk, RiskConfig
from dynamic_dpo.runs.margin_log import MarginLog, MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.resuming import load_controller_state, save_controller_state
from dynamic_dpo.trainers.checkpoints.saved import check_saved_tokenizer, check_saved_weights
from dynamic_dpo.utils.signals import Interrupted, stop_signals
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer
from torture.tiny_run import build, digest


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Ends the run after a step, as a kill would, once its checkpoint is there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def controller(mode: str, scope: str) -> Risk:
    # Warm-up ends inside the second step (micro) or with it (step).
    config = RiskConfig(
        mode=mode,  # type: ignore[arg-type]
        scope=scope,  # type: ignore[arg-type]
        warmup_steps=3 if scope == "micro" else 2,
        alpha=0.3,
        delta=0.25,
        window_multiple=2,
        margin_budget=0.5 if mode == "target" else None,
    )
    return Risk(config, pairs_per_update=4 if scope == "micro" else 8)


def make(folder: Path, method: PreferenceMethod, **settings: Any) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(
            folder,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=1,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            warmup_steps=2,
        ),
        train_dataset=random_pairs(28),  # the last step of an epoch is a short one
        processing_class=word_tokenizer(),
        method=method,
        margin_log=MarginLogConfig(),
        **settings,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(trainer: PreferenceTrainer) -> list[tuple[float, ...]]:
    kept = ("loss", "grad_norm", "beta", "rewards/margins", "learning_rate")
    return [tuple(entry[key] for key in kept) for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(
    scope="module",
    params=[(mode, scope) for mode in ("paper", "exact", "rm", "target") for scope in ("micro", "step")],
    ids=lambda p: "-".join(p),
)
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, PreferenceTrainer]:
    mode, scope = request.param
    folder = tmp_path_factory.mktemp("whole")
    engine = EngineConfig(reference_dir=str(folder / "reference"))
    whole = make(folder, controller(mode, scope), engine=engine)
    whole.train()
    return mode, scope, whole


# In both warm-ups, where they end, after them, at an epoch's end (4), behind it.
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: tuple[str, str, PreferenceTrainer], stop: int
) -> None:
    mode, scope, whole = uninterrupted
    assert whole.state.global_step == 8

    make(tmp_path / "parts", controller(mode, scope), callbacks=[StopAfter(stop)]).train()
    resumed = make(tmp_path / "parts", controller(mode, scope))
    resumed.train(resume_from_checkpoint=True)

    assert numbers(resumed) == numbers(whole)
    assert resumed.method.state_dict() == whole.method.state_dict()
    assert resumed.method.beta != 0.1
    assert (resumed.num_updates, resumed.num_pairs_seen) == (whole.num_updates, whole.num_pairs_seen)
    assert resumed.whole_step.num_tokens == whole.whole_step.num_tokens > 0
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    for name in ("margins.jsonl", "controller.jsonl"):
        runs = (Path(whole.args.output_dir), tmp_path / "parts")
        expected, ours = (lines(run / "logs" / "margins" / name) for run in runs)
        assert len(ours) == whole.num_updates
        for line in (*expected, *ours):
            line.pop("npy", None)
        assert ours == expected


def test_a_run_killed_after_its_checkpoint_logs_every_update_once(tmp_path: Path) -> None:
    first = make(tmp_path, controller("paper", "micro"), callbacks=[StopAfter(5)])
    first.train()
    shutil.rmtree(tmp_path / "checkpoint-5")
    shutil.rmtree(tmp_path / "checkpoint-4")
    log = tmp_path / "logs" / "margins"
    with (log / "margins.jsonl").open("a") as file:
        file.write('{"epoch": 1, "ste')  # the kill came in the middle of a line
    resumed = make(tmp_path, controller("paper", "micro"))
    resumed.train(resume_from_checkpoint=True)
    total = resumed.num_updates
    assert [line["step"] for line in lines(log / "margins.jsonl")] == list(range(1, total + 1))
    assert [line["update"] for line in lines(log / "controller.jsonl")] == list(range(1, total + 1))
    on_disk = sorted(path.name for path in log.rglob("*.npy"))
    assert on_disk == [f"step_{k:05d}.npy" for k in range(1, total + 1)]


def test_the_record_of_a_resumed_run_counts_all_pairs_and_times_its_own(tmp_path: Path) -> None:
    make(tmp_path, DPO(), callbacks=[StopAfter(6)]).train()
    make(tmp_path, DPO()).train(resume_from_checkpoint=True)
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert (summary["pairs_seen"], summary["optimizer_steps"]) == (56, 8)
    # Steps 7 and 8 hold 8 + 4 pairs.
    assert summary["pairs_per_second"] == pytest.approx(12 / summary["training_seconds"])
    assert (summary["reference_computed"], summary["reference_reused"]) == (0, 28)


def test_an_adapter_run_resumes_too(tmp_path: Path) -> None:
    def adapted(folder: Path, **settings: Any) -> PreferenceTrainer:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        return make(folder, controller("paper", "micro"), peft_config=lora, **settings)

    whole = adapted(tmp_path / "whole")
    whole.train()
    adapted(tmp_path / "parts", callbacks=[StopAfter(3)]).train()
    resumed = adapted(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert numbers(resumed) == numbers(whole)


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    make(tmp_path, controller("paper", "micro"), callbacks=[StopAfter(1)]).train()
    with pytest.raises(
        CheckpointError, match=r'method\.mode: the checkpoint has "paper", this run has "exact"'
    ):
        make(tmp_path, controller("exact", "micro")).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: the checkpoint was made by another trainer or is incomplete"),
        ("{", "cannot be read"),
        ("[]", "holds no controller state"),
        ('{"version": 1}', "holds no controller state"),
    ],
)
def test_a_checkpoint_without_a_controller_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "controller_state.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_controller_state(tmp_path)


def test_a_controller_state_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save_controller_state(tmp_path, {"method": {"tau": float("nan")}})
    assert list(tmp_path.iterdir()) == []
    save_controller_state(tmp_path, {"method": {"tau": 0.1 + 0.2}})
    assert load_controller_state(tmp_path) == {"method": {"tau": 0.1 + 0.2}}


# ---- what was saved ----


def test_a_saved_model_is_compared_value_by_value(tmp_path: Path) -> None:
    from tiny import tiny_qwen2

    for number, model in enumerate((tiny_llama(), tiny_qwen2())):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        assert check_saved_weights(folder, model) == len({p.data_ptr() for p in model.parameters()})
        with torch.no_grad():
            next(model.parameters())[3, 3] += 1e-3
        with pytest.raises(CheckpointError, match=r"does not hold the trained model\.embed_tokens\.weight"):
            check_saved_weights(folder, model)


def test_a_saved_adapter_is_compared_too(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    assert check_saved_weights(tmp_path, model) == 4  # A and B of two layers
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data += 1.0
    with pytest.raises(CheckpointError, match="does not hold the trained"):
        check_saved_weights(tmp_path, model)


def test_a_model_that_was_not_saved_whole_is_not_saved(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="no model file was written"):
        check_saved_weights(tmp_path, tiny_llama())
    state = {name: value.clone() for name, value in tiny_llama().state_dict().items()}
    state.pop("lm_head.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="it is incomplete"):
        check_saved_weights(tmp_path, tiny_llama())


def test_a_saved_tokenizer_is_compared_by_what_it_does(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(template="{% for message in messages %}{{ message.content }}{% endfor %}")
    tokenizer.save_pretrained(tmp_path)
    check_saved_tokenizer(tmp_path, tokenizer)
    for change, message in (
        ("chat_template", "another chat template"),
        ("eos_token", "end-of-sequence token"),
    ):
        other = word_tokenizer(template=tokenizer.chat_template)
        setattr(other, change, "<s>")
        with pytest.raises(CheckpointError, match=message):
            check_saved_tokenizer(tmp_path, other)


# ---- the margin log by itself ----


def test_each_rank_may_keep_its_own_log(tmp_path: Path) -> None:
    config = MarginLogConfig(log_dir="m", save_per_rank=True)
    assert [log.folder.name for log in config.open(tmp_path, rank=0, num_ranks=2)] == ["m", "rank_000"]
    (own,) = config.open(tmp_path, rank=1, num_ranks=2)
    assert (own.folder, own.local) == (tmp_path / "m" / "rank_001", True)
    assert len(config.open(tmp_path, rank=0, num_ranks=1)) == 1
    assert MarginLogConfig().open(tmp_path, rank=1, num_ranks=2) == []


def test_a_log_that_never_was_resumes_and_starts_anew_as_nothing(tmp_path: Path) -> None:
    log = MarginLog(tmp_path / "m")
    log.resume_at(3)
    assert log.start_anew() is None
    assert not (tmp_path / "m").exists()
    log.write(torch.ones(2), epoch=0, step=1, update=1, reading={"risk/tau": 0.5, "beta": 0.1})
    assert lines(log.controller_path) == [{"epoch": 0, "step": 1, "update": 1, "tau": 0.5, "beta": 0.1}]


# ---- exactly, wherever it is cut ----


def tiny(folder: Path, **overrides: Any) -> PreferenceTrainer:
    """The torture's run, which logs every third step and saves every second, with settings of a test's own."""
    return build(folder, **overrides)


def cut_at(folder: Path, steps: list[int], **overrides: Any) -> dict[int, list[str]]:
    """Stop a run by a signal at each of ``steps`` in turn, resume it, and return in what its end differs."""
    (folder / "whole").mkdir()
    whole = tiny(folder / "whole", **overrides)
    whole.train()
    expected = digest(whole)
    different = {}
    for step in steps:
        parts = folder / f"part{step}"  # As long as "whole": a name's length is in no digest, but who knows.
        parts.mkdir()
        first = tiny(parts, **overrides)
        first.add_callback(SignalAfter(step))
        with pytest.raises(Interrupted), stop_signals():
            first.train()
        assert (parts / "run" / f"checkpoint-{step}").is_dir()
        resumed = tiny(parts, **overrides)
        resumed.train(resume_from_checkpoint=True)
        found = digest(resumed)
        different[step] = [part for part in expected if found[part] != expected[part]]
    return different


class SignalAfter(StopAfter):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_logged_losses_do_not_depend_on_where_between_two_entries_a_run_is_cut(tmp_path: Path) -> None:
    # Steps 3, 6, 9 are logged; 5 ends an epoch; 4 and 8 are evaluated, 4 by the resumed run.
    assert cut_at(tmp_path, [2, 4, 5, 7]) == {2: [], 4: [], 5: [], 7: []}


def test_what_is_logged_and_evaluated_by_epoch_survives_a_cut_at_the_epochs_end(tmp_path: Path) -> None:
    by_epoch = {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}
    assert cut_at(tmp_path, [4, 5], **by_epoch) == {4: [], 5: []}


def test_dropout_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    def with_dropout(folder: Path, **settings: Any) -> PreferenceTrainer:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        return make(folder, controller("paper", "step"), peft_config=lora, disable_dropout=False, **settings)

    whole = with_dropout(tmp_path / "whole")
    whole.train()
    with_dropout(tmp_path / "parts", callbacks=[StopAfter(3)]).train()
    resumed = with_dropout(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert numbers(resumed) == numbers(whole)


def test_a_finished_run_that_is_resumed_makes_no_step_more(tmp_path: Path) -> None:
    tiny(tmp_path, max_steps=3).train()
    again = tiny(tmp_path, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


# ---- of the same run only ----


def test_changed_mathematics_is_refused_with_each_difference_and_allowed_on_purpose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny(tmp_path, max_steps=2).train()
    changed = {"learning_rate": 0.5, "max_grad_norm": 0.1, "seed": 7}
    with pytest.raises(CheckpointError) as refusal:
        tiny(tmp_path, max_steps=2, **changed).train(resume_from_checkpoint=True)
    assert "learning_rate: the checkpoint has 0.01, this run has 0.5" in str(refusal.value)
    assert "max_grad_norm: the checkpoint has 1.0, this run has 0.1" in str(refusal.value)
    assert "seed: the checkpoint has 42, this run has 7" in str(refusal.value)
    assert "resume_changed=true" in str(refusal.value)

    on_purpose = tiny(tmp_path, max_steps=2, **changed)
    on_purpose.resume_changed = True
    on_purpose.train(resume_from_checkpoint=True)
    assert "going on although" in caplog.text


def test_changed_cosmetics_are_no_change(tmp_path: Path) -> None:
    tiny(tmp_path, max_steps=2).train()
    cosmetics = {
        "logging_steps": 1,
        "save_steps": 1,
        "save_total_limit": 5,
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    tiny(tmp_path, max_steps=2, **cosmetics).train(resume_from_checkpoint=True)


def test_other_data_or_another_order_of_it_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path, max_steps=2).train()
    other = tiny(tmp_path, max_steps=2)
    other.train_dataset = other.train_dataset.select([1, 0, *range(2, 20)])
    with pytest.raises(CheckpointError, match="data: the checkpoint has"):
        other.train(resume_from_checkpoint=True)


def test_a_run_without_a_fixed_end_may_be_made_longer(tmp_path: Path) -> None:
    tiny(tmp_path, max_steps=2, lr_scheduler_type="constant", warmup_steps=0).train()
    longer = tiny(tmp_path, max_steps=4, lr_scheduler_type="constant", warmup_steps=0)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 4


def test_a_damaged_newest_checkpoint_is_passed_over_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tiny(tmp_path)
    whole.train()
    expected = digest(whole)
    run = tmp_path / "run"
    (run / "checkpoint-10" / "optimizer.pt").write_bytes(b"")
    again = tiny(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == expected
    assert "checkpoint-10 is skipped: optimizer.pt has 0 bytes" in caplog.text
    assert (run / "checkpoint-10.set-aside-1").is_dir()


def test_nothing_to_resume_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        tiny(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from at"):
        tiny(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_log_that_someone_cut_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MarginLog(tmp_path / "m")
    for update in (1, 2, 3):
        log.write(torch.ones(2), epoch=0, step=1, update=update, reading={})
    log.sync()
    kept = log.controller_path.read_text().splitlines(keepends=True)
    log.controller_path.write_text(kept[0] + "garbage\n" + kept[2])
    log.resume_at(2)
    assert "controller.jsonl lacks 1 of 2 updates" in caplog.text
    assert [line["step"] for line in lines(log.margins_path)] == [1, 2]
    assert not (log.folder / "epoch_000" / "step_00003.npy").exists()
