"""Samples while training: what is written and counted, and that the run is to the last bit the same without them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig

from dynamic_dpo.errors import ConfigError, DataError, JudgeError
from dynamic_dpo.eval.generate import generate
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.runs.samples import SamplingConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.sft_trainer import build_sft_trainer
from dynamic_dpo.trainers.watch.sampling import Sampling
from helpers_ranks import launched
from tiny import random_pairs, tiny_gpt2, tiny_llama, training_arguments, word_tokenizer

NUM_PROMPTS, NUM_TOKENS = 3, 12
WITH = Sampling(settings=SamplingConfig(num_prompts=NUM_PROMPTS, max_new_tokens=NUM_TOKENS))


def make(
    folder: Path, sampling: Sampling | None = WITH, *, model: Any = None, **settings: Any
) -> PreferenceTrainer:
    options = {name: settings.pop(name) for name in ("peft_config", "disable_dropout") if name in settings}
    return PreferenceTrainer(
        model=model or tiny_llama(),
        args=training_arguments(
            folder, **({"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2} | settings)
        ),
        train_dataset=random_pairs(40),
        eval_dataset=random_pairs(8, seed=3),
        processing_class=word_tokenizer(),
        method=Risk(RiskConfig(warmup_steps=1, alpha=0.3), pairs_per_update=4),
        sampling=sampling,
        **options,
    )


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def entries_of(trainer: Any, name: str = "samples/length") -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if name in entry]


def without_clock(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log's entries but for samples, speeds and what else a clock says."""
    ours = [entry for entry in history if "samples/length" not in entry]
    clocks = ("speed/", "runtime", "per_second")
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in clocks)}
        for entry in ours
    ]


def with_dropout() -> Any:
    model = tiny_gpt2()
    for name, module in model.named_modules():
        # Of attention packed rows have none.
        if isinstance(module, torch.nn.Dropout) and not name.endswith("attn_dropout"):
            module.p = 0.2
    return model


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("kind", ["plain", "dropout", "bf16", "adapter, activations computed again"])
def test_a_run_is_to_the_last_bit_what_it_is_without_samples(
    tmp_path: Path, kind: str, every: int | None
) -> None:
    def numbers(folder: Path, sampling: Sampling | None) -> tuple[Any, ...]:
        adapter = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        settings: dict[str, Any] = {
            "plain": {},
            "dropout": {"model": with_dropout(), "disable_dropout": False},
            "bf16": {"bf16": True},
            "adapter, activations computed again": {"peft_config": adapter, "activation_checkpointing": True},
        }[kind]
        trainer = make(folder, sampling, **settings)
        if kind == "dropout":
            # Its margins differ from 0 before the first step, which is no fault here.
            trainer.policy.starts_as_reference = False
        trainer.train()
        random_state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        return (
            without_clock(trainer.state.log_history),
            trainer.method.state_dict(),
            [weight.clone() for weight in trainer.model.parameters()],
            random_state,
        )

    sampling = Sampling(settings=SamplingConfig(every=every, num_prompts=2, max_new_tokens=5))
    (log, state, weights, drawn), (log_, state_, weights_, drawn_) = (
        numbers(tmp_path / name, one) for name, one in (("with", sampling), ("without", None))
    )
    assert len(entries_in := [entry for entry in log if "loss" in entry]) == 6
    assert len({entry["loss"] for entry in entries_in}) == 6
    assert log == log_
    assert state == state_
    assert all(map(torch.equal, weights, weights_))
    assert torch.equal(drawn[0], drawn_[0])
    assert drawn[1:] == drawn_[1:]


def test_two_ranks_are_to_the_last_bit_what_they_are_without_samples_and_log_the_same(tmp_path: Path) -> None:
    first, second = launched("distributed_samples.py", tmp_path / "two", ranks=2)
    assert first == second
    samples = first["with"].pop("samples")
    assert first["without"].pop("samples") == []
    assert first["with"] == first["without"]
    assert len(set(first["with"]["losses"])) == 5
    assert [entry["step"] for entry in samples] == [0, 1, 2, 3, 4, 5]
    # The first rank alone has written.
    assert [row["step"] for row in rows_in(tmp_path / "two" / "with")] == [
        step for step in range(6) for _ in "ab"
    ]


def test_samples_come_at_the_start_at_evaluations_and_at_the_last_step(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=5)
    trainer.train()
    rows = rows_in(tmp_path)
    assert [row["step"] for row in rows] == [step for step in (0, 2, 4, 5) for _ in range(NUM_PROMPTS)]
    assert [entry["step"] for entry in entries_of(trainer)] == [0, 2, 4, 5]
    assert trainer.samples is not None
    summary = json.loads((tmp_path / "run_summary.json").read_text())["sampling"]
    assert summary == trainer.samples.summary()
    assert (summary["times"], summary["outputs"]) == (4, 4 * NUM_PROMPTS)
    spent = sum(entry["speed/sampling_seconds"] for entry in entries_of(trainer))
    assert summary["seconds"] == pytest.approx(spent)


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
def test_every_counts_optimizer_steps_whatever_is_evaluated(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    sampling = Sampling(settings=SamplingConfig(every=every, num_prompts=1, max_new_tokens=2))
    make(tmp_path, sampling, max_steps=5).train()
    assert [row["step"] for row in rows_in(tmp_path)] == steps


def test_what_is_written_is_what_generate_writes_with_the_weights_of_that_step(tmp_path: Path) -> None:
    prompts = ["w1 w2 w3", "w9"]
    trainer = make(tmp_path, Sampling(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS, seed=5)))
    trainer.train()
    for step, model in ((0, tiny_llama()), (6, trainer.model)):
        expected = generate(
            model, word_tokenizer(), prompts, max_new_tokens=NUM_TOKENS, seed=5, progress=False
        )
        rows = [row for row in rows_in(tmp_path) if row["step"] == step]
        assert [row["text"] for row in rows] == [output.text for output in expected]
        assert [row["finished"] for row in rows] == [output.finished for output in expected]
        assert [row["num_tokens"] for row in rows] == [len(output.token_ids) for output in expected]
        assert [row["prompt"] for row in rows] == prompts


def test_the_prompts_are_those_of_the_held_out_pairs_each_once(tmp_path: Path) -> None:
    held_out = random_pairs(5, seed=3)
    doubled = Dataset.from_list([*held_out.select([0]), *held_out, *held_out])
    trainer = make(tmp_path)
    trainer.eval_dataset = doubled
    again = type(trainer.samples)(trainer, WITH)  # type: ignore[misc]
    assert [prompt.ids for prompt in again._prompts] == [tuple(ids) for ids in held_out["prompt_ids"][:3]]


def test_a_prompt_that_leaves_no_room_is_passed_over_and_one_that_is_given_is_refused(tmp_path: Path) -> None:
    short, long = random_pairs(1, seed=1, longest=3), random_pairs(1, seed=2, longest=4)
    long = long.map(lambda row: {"prompt_ids": [7] * 120})
    trainer = make(tmp_path, Sampling(settings=SamplingConfig(max_new_tokens=20)), model=tiny_gpt2())
    trainer.eval_dataset = Dataset.from_list([*long, *short])
    found = type(trainer.samples)(trainer, Sampling(settings=SamplingConfig(max_new_tokens=20)))  # type: ignore[misc]
    assert [prompt.ids for prompt in found._prompts] == [tuple(short["prompt_ids"][0])]
    trainer.eval_dataset = long
    with pytest.raises(DataError, match=r"room for 20 tokens \(sampling.max_new_tokens\): lower it"):
        type(trainer.samples)(trainer, Sampling(settings=SamplingConfig(max_new_tokens=20)))  # type: ignore[misc]
    with pytest.raises(DataError, match="sampling has no prompts"):
        make(tmp_path / "none", Sampling([]))


def test_the_estimates_of_the_divergence_are_differences_of_log_probabilities_per_token(
    tmp_path: Path,
) -> None:
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make(tmp_path, model=tiny_llama(), peft_config=adapter, learning_rate=3e-2)
    trainer.train()
    first, *_, last = entries_of(trainer)
    # An adapter that was not trained yet adds nothing.
    assert first["samples/kl"] == first["samples/kl_from_start"] == 0.0
    ids_of = {prompt.id: prompt.ids for prompt in trainer.samples._prompts}  # type: ignore[union-attr]

    def logp(row: Mapping[str, Any], model: Any) -> float:
        whole = torch.tensor([[*ids_of[row["prompt_id"]], *row["token_ids"]]])
        labels = whole.clone()
        labels[:, : len(ids_of[row["prompt_id"]])] = -100
        with torch.no_grad():  # The model's own loss is the mean over the output's tokens.
            return -float(model(input_ids=whole, labels=labels).loss) * len(row["token_ids"])

    rows = rows_in(tmp_path)
    at = {step: [row for row in rows if row["step"] == step] for step in (0, 6)}
    trainer.model.eval()
    start = tiny_llama()
    tokens = {step: sum(len(row["token_ids"]) for row in at[step]) for step in at}
    to_reference = sum(logp(row, trainer.model) - logp(row, start) for row in at[6]) / tokens[6]
    from_start = sum(logp(row, start) - logp(row, trainer.model) for row in at[0]) / tokens[0]
    assert last["samples/kl"] == pytest.approx(to_reference, abs=2e-5)
    assert last["samples/kl_from_start"] == pytest.approx(from_start, abs=2e-5)
    assert abs(to_reference) > 1e-2


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_p": 0.9}, {"temperature": 0.0}])
def test_samples_that_the_model_did_not_draw_itself_estimate_no_divergence(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    trainer = make(tmp_path, Sampling(settings=SamplingConfig(max_new_tokens=3, num_prompts=1, **settings)))  # type: ignore[arg-type]
    trainer.train()
    assert not [
        name for entry in trainer.state.log_history for name in entry if name.startswith("samples/kl")
    ]
    assert "logp" not in rows_in(tmp_path)[0]


class Stop(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("the machine is gone")


@pytest.mark.parametrize("every", [None, 1])
def test_a_killed_run_goes_on_without_a_line_twice_or_missing(tmp_path: Path, every: int | None) -> None:
    sampling = Sampling(settings=SamplingConfig(every=every, num_prompts=2, max_new_tokens=6))
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path / "whole", sampling, **saving)
    whole.train()
    killed = make(tmp_path / "killed", sampling, **saving)
    killed.add_callback(Stop(5))
    with pytest.raises(RuntimeError, match="gone"):
        killed.train()
    path = tmp_path / "killed" / "samples.jsonl"
    with path.open("a") as file:
        file.write(
            '{"step": 5, "prompt_id": "a", "prompt": "b", "text": "c"}\n{"step": 5, "prom'
        )  # half of a time
    again = make(tmp_path / "killed", sampling, **saving)
    again.train(resume_from_checkpoint=True)
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()

    def figures(trainer: Any) -> list[dict[str, float]]:
        return [
            {name: value for name, value in entry.items() if not name.startswith("speed/")}
            for entry in entries_of(trainer)
        ]

    assert figures(again) == figures(whole)


def test_a_new_run_in_the_folder_moves_the_samples_of_the_old_one_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, max_steps=1).train()
    before = (tmp_path / "samples.jsonl").read_bytes()
    make(tmp_path, max_steps=2).train()
    assert (tmp_path / "samples.old-1.jsonl").read_bytes() == before
    assert "an earlier run's samples were moved to" in caplog.text
    assert {row["step"] for row in rows_in(tmp_path)} == {0, 2}


class Words:
    """Counts words."""

    name, batch_size = "words", 2

    def __init__(self) -> None:
        self.batches: list[int] = []

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "words"}

    def score_many(self, items: Any) -> list[float]:
        self.batches.append(len(items))
        (
            random.random(),
            torch.rand(3),
            np.random.rand(2),
        )  # A scorer may draw numbers: the run must not see it.
        return [float(len(text.split())) for _, text in items]


def test_scorers_score_every_sample_in_their_batches_and_draw_no_number_of_the_runs(tmp_path: Path) -> None:
    scorer = Words()
    settings = SamplingConfig(num_prompts=3, max_new_tokens=6)
    trainer = make(tmp_path / "scored", Sampling(settings=settings, scorers={"words": scorer}), max_steps=2)
    trainer.train()
    assert scorer.batches == [2, 1] * 2
    rows = rows_in(tmp_path / "scored")
    assert [row["scores"]["words"] for row in rows] == [len(row["text"].split()) for row in rows]
    last = entries_of(trainer)[-1]
    mean = sum(row["scores"]["words"] for row in rows[3:]) / 3
    assert last["samples/score/words"] == pytest.approx(mean)
    alone = make(tmp_path / "alone", None, max_steps=2)
    alone.train()
    assert without_clock(trainer.state.log_history) == without_clock(alone.state.log_history)


def test_a_scorer_that_gives_no_number_is_said(tmp_path: Path) -> None:
    class Silent(Words):
        def score_many(self, items: Any) -> list[float]:
            return [math.nan] * len(items)

    with pytest.raises(JudgeError, match="words gave the score nan"):
        make(tmp_path, Sampling(scorers={"silent": Silent()})).train()


def sft(folder: Path, sampling: Sampling | None) -> Any:
    rows = {
        "input_ids": [[*range(4, 10), *range(20, 20 + n), 2] for n in range(2, 10)],
        "completion_mask": [[0] * 6 + [1] * (n + 1) for n in range(2, 10)],
    }
    return build_sft_trainer(
        tiny_llama(),
        SFTConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_steps=4, logging_steps=2,
            per_device_train_batch_size=2, save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
        ),
        train_dataset=Dataset.from_dict(rows),
        tokenizer=word_tokenizer(),
        sampling=sampling,
    )  # fmt: skip


def test_fine_tuning_writes_samples_and_is_what_it_is_without_them(tmp_path: Path) -> None:
    sampled = sft(tmp_path / "with", Sampling(settings=SamplingConfig(every=1, max_new_tokens=4)))
    sampled.train()
    alone = sft(tmp_path / "without", None)
    alone.train()
    # All rows have one prompt.
    assert [(row["step"], row["prompt"]) for row in rows_in(tmp_path / "with")] == [
        (step, "w0 w1 w2 w3 w4 w5") for step in range(5)
    ]
    assert without_clock(sampled.state.log_history) == without_clock(alone.state.log_history)
    assert "mean_token_accuracy" in sampled.state.log_history[-2]
    assert all(map(torch.equal, sampled.model.parameters(), alone.model.parameters()))


def test_a_model_that_is_spread_over_ranks_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(
        ConfigError, match=r"FSDP2 spreads it over all of them: leave sampling out, or train with DDP"
    ):
        type(trainer.samples)(trainer, WITH)  # type: ignore[misc]
