"""The preference trainer as a whole: margins, evaluation, adapters, alarms, arguments and records."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2LMHeadModel, OPTConfig, OPTForCausalLM, TrainerCallback
from trl import DPOConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import ConfigError, DataError, ModelError, NonFiniteError
from dynamic_dpo.methods import DPO, PreferenceMethod, Risk, RiskConfig
from dynamic_dpo.methods.base import Control, Needs
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer, RiskBetaDPOConfig, RiskBetaDPOTrainer
from dynamic_dpo.trainers.arguments import default_arguments
from tiny import VOCAB, random_pairs, tiny_gpt2, tiny_llama, training_arguments, word_tokenizer


def make(folder: Path, *, method: PreferenceMethod | None = None, **settings: Any) -> PreferenceTrainer:
    overrides = settings.pop("args", {})
    arguments: dict[str, Any] = {
        "model": tiny_llama(),
        "args": training_arguments(folder, **overrides) if isinstance(overrides, dict) else overrides,
        "train_dataset": random_pairs(24),
        "processing_class": word_tokenizer(),
        "method": method or DPO(),
        "margin_log": MarginLogConfig(),
    }
    return PreferenceTrainer(**(arguments | settings))


def risk(**settings: Any) -> Risk:
    return Risk(
        RiskConfig(**{"warmup_steps": 2, "alpha": 0.3, "delta": 0.25, **settings}), pairs_per_update=4
    )


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def logp(model: Any, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


def margins_of(policy: Any, reference: Any, rows: Dataset) -> list[float]:
    def difference(model: Any, row: dict[str, Any]) -> float:
        return logp(model, row["prompt_ids"], row["chosen_ids"]) - logp(
            model, row["prompt_ids"], row["rejected_ids"]
        )

    return [difference(policy, row) - difference(reference, row) for row in rows]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_logs(trainer: PreferenceTrainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- margins, evaluation ----


def test_evaluation_gives_the_margins_of_an_independent_computation(tmp_path: Path) -> None:
    rows = random_pairs(7, seed=5)
    trainer = make(tmp_path, eval_dataset=rows, args={"max_steps": 4, "learning_rate": 1e-2})
    trainer.train()
    metrics = trainer.evaluate()
    margins = margins_of(trainer.model, tiny_llama(), rows)
    assert metrics["eval_margins/mean"] == pytest.approx(sum(margins) / 7, rel=1e-4)
    assert metrics["eval_rewards/margins"] == pytest.approx(0.1 * sum(margins) / 7, rel=1e-4)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(m > 0 for m in margins) / 7)
    losses = [math.log1p(math.exp(-0.1 * m)) for m in margins]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)
    chosen = [logp(trainer.model, row["prompt_ids"], row["chosen_ids"]) for row in rows]
    assert metrics["eval_logps/chosen"] == pytest.approx(sum(chosen) / 7, rel=1e-5)
    assert max(map(abs, margins)) > 1


def test_logged_margins_are_those_of_the_policy_before_each_step(tmp_path: Path) -> None:
    seen: list[tuple[list[int], list[float]]] = []

    class Watching(PreferenceTrainer):
        def training_step(
            self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            rows = list(inputs["pairs"].rows)
            seen.append((rows, margins_of(self.model, reference, self.train_dataset.select(rows))))
            return super().training_step(model, inputs, *args, **kwargs)

    reference = tiny_llama()
    trainer = Watching(
        model=tiny_llama(),
        args=training_arguments(tmp_path, learning_rate=1e-2),
        train_dataset=random_pairs(24),
        processing_class=word_tokenizer(),
        method=DPO(),
        margin_log=MarginLogConfig(log_dir="here"),
    )
    trainer.train()
    logged = lines(tmp_path / "here" / "margins.jsonl")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert sorted(row for rows, _ in seen for row in rows) == list(range(24))
    for line, (_, expected) in zip(logged, seen, strict=True):
        assert line["sample"] == pytest.approx(expected, rel=1e-4, abs=2e-5)
    assert abs(logged[-1]["mean"]) > 0.1


@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_beta_is_unchanged_during_evaluation(tmp_path: Path, mode: str) -> None:
    method = risk(mode=mode, window_multiple=2)
    trainer = make(tmp_path, method=method, eval_dataset=random_pairs(9, seed=3))
    trainer.train()
    before, updates = json.dumps(method.state_dict()), trainer.num_updates
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]
    assert json.dumps(method.state_dict()) == before
    assert trainer.num_updates == updates == 6


def test_evaluating_in_between_changes_nothing_of_the_training(tmp_path: Path) -> None:
    def trained(folder: Path, **settings: Any) -> tuple[list[float], float, torch.Tensor]:
        method = risk()
        trainer = make(folder, method=method, eval_dataset=random_pairs(5, seed=3), args=settings)
        trainer.train()
        return [entry["loss"] for entry in train_logs(trainer)], method.beta, trainer.model.lm_head.weight

    alone = trained(tmp_path / "a")
    between = trained(tmp_path / "b", eval_strategy="steps", eval_steps=1)
    assert alone[:2] == between[:2]
    assert torch.equal(alone[2], between[2])


def test_a_dict_of_evaluation_sets_is_evaluated_by_name(tmp_path: Path) -> None:
    sets = {"near": random_pairs(5, seed=3), "far": random_pairs(6, seed=4)}
    trainer = make(tmp_path, eval_dataset=sets, args={"eval_strategy": "epoch", "learning_rate": 1e-2})
    trainer.train()
    names = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_near_margins/mean", "eval_far_margins/mean"} <= names
    metrics = trainer.evaluate()
    for name, rows in sets.items():
        margins = margins_of(trainer.model, tiny_llama(), rows)
        assert metrics[f"eval_{name}_margins/mean"] == pytest.approx(
            sum(margins) / len(rows), rel=1e-4, abs=1e-5
        )


def test_a_new_set_can_be_evaluated_before_training(tmp_path: Path) -> None:
    metrics = make(tmp_path).evaluate(random_pairs(5, seed=3))
    assert metrics["eval_margins/mean"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora", "reference given"])
def test_a_new_set_after_training_needs_a_reference_that_is_still_there(tmp_path: Path, kind: str) -> None:
    settings: dict[str, Any] = {
        "full": {},
        "lora": {"peft_config": lora()},
        "reference given": {"ref_model": tiny_llama(seed=1)},
    }[kind]
    trainer = make(tmp_path, args={"learning_rate": 1e-2}, **settings)
    trainer.train()
    rows = random_pairs(5, seed=3)
    if kind == "full":
        with pytest.raises(ModelError, match="the reference is gone: give it to the trainer as eval_dataset"):
            trainer.evaluate(rows)
        return
    reference = tiny_llama(seed=0 if kind == "lora" else 1)
    margins = margins_of(trainer.model, reference, rows)
    assert trainer.evaluate(rows)["eval_margins/mean"] == pytest.approx(sum(margins) / 5, rel=1e-4)


# ---- policies ----


def test_with_an_adapter_the_reference_is_the_policy_with_the_adapter_off(tmp_path: Path) -> None:
    rows = random_pairs(6, seed=5)
    trainer = make(tmp_path, peft_config=lora(), eval_dataset=rows, args={"learning_rate": 3e-2})
    trainer.train()
    base = trainer.model.get_base_model().state_dict()
    for name, value in tiny_llama().state_dict().items():
        key = name if name in base else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(base[key], value), name
    margins = margins_of(trainer.model, tiny_llama(), rows)
    assert trainer.evaluate()["eval_margins/mean"] == pytest.approx(sum(margins) / 6, rel=1e-4)
    assert max(map(abs, margins)) > 0.1


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_loss(tmp_path: Path, adapter: bool) -> None:
    def losses(folder: Path, checkpointing: bool) -> list[float]:
        trainer = make(
            folder,
            peft_config=lora() if adapter else None,
            args={"activation_checkpointing": checkpointing, "learning_rate": 1e-2},
        )
        trainer.train()
        assert trainer.model.is_activation_checkpointing is checkpointing
        return [value for entry in train_logs(trainer) for value in (entry["loss"], entry["grad_norm"])]

    plain = losses(tmp_path / "a", checkpointing=False)
    assert losses(tmp_path / "b", checkpointing=True) == pytest.approx(plain, rel=1e-5)
    assert plain[0] != plain[-2]


@pytest.fixture
def saved(tmp_path: Path) -> list[str]:
    """Two models on disk, by name."""
    for seed in (0, 1):
        tiny_llama(seed=seed).save_pretrained(tmp_path / f"model-{seed}")
        word_tokenizer().save_pretrained(tmp_path / f"model-{seed}")
    return [str(tmp_path / f"model-{seed}") for seed in (0, 1)]


def test_models_are_taken_by_name_and_a_loaded_reference_is_let_go(tmp_path: Path, saved: list[str]) -> None:
    rows = random_pairs(6, seed=5)
    trainer = make(tmp_path, model=saved[0], ref_model=saved[1], processing_class=None, eval_dataset=rows)
    assert trainer.processing_class.eos_token == "</s>"
    trainer.train()
    margins = margins_of(trainer.model, tiny_llama(seed=1), rows)
    assert trainer.evaluate()["eval_margins/mean"] == pytest.approx(sum(margins) / 6, rel=1e-4)
    assert trainer.policy.reference_model is None
    with pytest.raises(ModelError, match="the reference is gone"):
        trainer.evaluate(random_pairs(5, seed=3))


def test_one_name_for_both_is_the_policys_own_start(tmp_path: Path, saved: list[str]) -> None:
    trainer = make(tmp_path, model=saved[0], ref_model=saved[0], args={"max_steps": 1})
    trainer.train()
    assert trainer.guard.start_arithmetic == torch.float32
    again = make(tmp_path / "again", model=saved[0], args={"max_steps": 1})
    again.train()
    summary = json.loads((tmp_path / "again" / "run_summary.json").read_text())
    assert (summary["reference_computed"], summary["reference_reused"]) == (0, 24)


def test_without_arguments_the_trainer_runs_on_this_machine() -> None:
    args = default_arguments()
    assert args.output_dir == "dpo_output"
    assert args.use_cpu is not torch.cuda.is_available()
    assert args.bf16 is torch.cuda.is_available()
    assert args.learning_rate == DPOConfig.learning_rate
    assert args.logging_steps == DPOConfig.logging_steps


def test_dropout_is_off_unless_asked_for(tmp_path: Path) -> None:
    def policy() -> Any:
        model = tiny_gpt2()
        model.transformer.drop.p = 0.5
        return model

    make(tmp_path, model=policy()).train()  # the check before the first step would see dropout
    with pytest.raises(ModelError, match="dropout"):
        make(tmp_path / "on", model=policy(), disable_dropout=False).train()


def test_dropout_written_as_a_function_is_off_too_and_the_saved_model_still_names_it(tmp_path: Path) -> None:
    def opt() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_attention_heads": 4}
        config = OPTConfig(vocab_size=VOCAB, num_hidden_layers=2, dropout=0.3, layerdrop=0.2, **sizes)
        return OPTForCausalLM(config)

    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make(tmp_path, model=opt(), args=saving)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    for folder in ("checkpoint-1", "model"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert (config["dropout"], config["layerdrop"]) == (0.3, 0.2), folder
    with pytest.raises(ModelError, match="dropout"):
        make(tmp_path / "on", model=opt(), disable_dropout=False).train()


def test_dropout_that_is_off_is_no_reason_against_packing(tmp_path: Path) -> None:
    def gpt2() -> Any:
        model = tiny_gpt2()
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(model.config, name, 0.1)
        return GPT2LMHeadModel(model.config)

    off = make(tmp_path, model=gpt2())
    off.train()
    assert off.policy.scorer.layout == "packed"
    assert off.model.config.attn_pdrop == 0.1
    on = make(tmp_path / "on", model=gpt2(), disable_dropout=False)
    assert on.policy.scorer.layout == "shared"


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    with pytest.raises(ModelError, match="the same object: leave ref_model out"):
        make(tmp_path, model=model, ref_model=model)
    other = tiny_llama()
    other.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="vocabularies of 96 and 100"):
        make(tmp_path, ref_model=other)
    with pytest.raises(ModelError, match="must be a peft configuration, got dict"):
        make(tmp_path, peft_config={"r": 4})
    trainer = make(tmp_path, peft_config=lora())
    with pytest.raises(ModelError, match="carries an adapter already"):
        make(tmp_path, model=trainer.model.get_base_model(), peft_config=lora())
    with pytest.raises(ModelError, match="no tokenizer: pass processing_class"):
        make(tmp_path, processing_class=None)


# ---- alarms ----


def test_the_check_before_the_first_step_sees_a_policy_in_another_dtype(tmp_path: Path) -> None:
    trainer = make(tmp_path, engine=EngineConfig(self_check=False))
    trainer.ensure_reference()
    trainer.model.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"before the first step a margin is .* dtype"):
        trainer.train()


def test_a_reference_in_another_dtype_is_allowed_its_rounding_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, ref_model=tiny_llama().to(torch.bfloat16))
    trainer.train()
    assert (
        "computes in float32 and the reference in bfloat16: every margin carries its rounding" in caplog.text
    )
    first = lines(tmp_path / "logs" / "margins" / "margins.jsonl")[0]
    assert 0.01 < first["std"] < 1
    with torch.no_grad():
        other = tiny_llama(seed=0)
        other.model.embed_tokens.weight.mul_(1.5)
    trainer = make(tmp_path / "other", ref_model=other.to(torch.bfloat16))
    trainer.policy.starts_as_reference = True
    with pytest.raises(
        ModelError, match=r"before the first step a margin is .* tokens in bfloat16: .* dtype"
    ):
        trainer.train()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_policy_with_bfloat16_weights_learns(
    tmp_path: Path, bf16: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    before = {name: weight.float() for name, weight in model.named_parameters()}
    trainer = make(tmp_path, model=model, args={"bf16": bf16, "learning_rate": 5e-7, "num_train_epochs": 3})
    trainer.train()
    assert trainer.state.global_step == 18
    moved = sum(int((weight != before[name]).sum()) for name, weight in trainer.model.named_parameters())
    assert moved > 0.99 * sum(weight.numel() for weight in before.values())
    assert lines(tmp_path / "logs" / "margins" / "margins.jsonl")[0]["std"] == 0
    assert "what is trained is held in float32" in caplog.text
    assert "masked away" not in caplog.text


@pytest.mark.parametrize("bf16", [False, True])
def test_a_bfloat16_base_under_an_adapter_stays_and_margins_begin_at_zero(tmp_path: Path, bf16: bool) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make(
        tmp_path,
        model=model,
        peft_config=lora(),
        args={"bf16": bf16, "learning_rate": 1e-2, "num_train_epochs": 2},
    )
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    assert {p.dtype for p in parameters.values() if p.requires_grad} == {torch.float32}
    frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    assert len(frozen) == len(base)
    for name, weight in frozen.items():
        own = name.removeprefix("base_model.model.").replace("base_layer.", "")
        assert torch.equal(weight, base[own]), name
    logged = lines(tmp_path / "logs" / "margins" / "margins.jsonl")
    assert logged[0]["std"] == 0
    assert logged[-1]["std"] > 0
    assert train_logs(trainer)[-1]["loss"] < train_logs(trainer)[0]["loss"]


@pytest.mark.parametrize("adapter", [False, True])
def test_twenty_steps_in_bfloat16_have_the_losses_of_float32(tmp_path: Path, adapter: bool) -> None:
    def losses(name: str, *, bf16: bool) -> list[float]:
        trainer = make(
            tmp_path / name,
            model=tiny_llama(dtype=torch.bfloat16 if bf16 and adapter else torch.float32),
            peft_config=lora() if adapter else None,
            train_dataset=random_pairs(8, longest=30),
            args={"bf16": bf16, "learning_rate": 5e-3 if adapter else 5e-4, "num_train_epochs": 10},
        )
        trainer.train()
        margins = [
            np.load(path) for path in sorted((tmp_path / name / "logs" / "margins").rglob("step_*.npy"))
        ]
        assert len(margins) == 20
        assert {array.dtype for array in margins} == {np.dtype(np.float32)}
        assert not margins[0].any()
        assert margins[-1].all()
        return [entry["loss"] for entry in train_logs(trainer)]

    float32 = losses("float32", bf16=False)
    assert float32[-1] < 0.6, "nothing is learned that could differ"
    assert losses("bf16", bf16=True) == pytest.approx(float32, rel=0.02)


def test_two_models_in_bfloat16_are_trained_with_a_reference_that_stays(tmp_path: Path) -> None:
    reference = tiny_llama(dtype=torch.bfloat16)
    trainer = make(
        tmp_path,
        model=tiny_llama(dtype=torch.bfloat16),
        ref_model=reference,
        args={"bf16": True, "max_steps": 2},
    )
    trainer.train()
    assert trainer.guard.start_arithmetic == torch.bfloat16
    assert {parameter.dtype for parameter in reference.parameters()} == {torch.bfloat16}


def test_a_reference_with_other_weights_is_no_reason_to_stop(tmp_path: Path) -> None:
    trainer = make(tmp_path, ref_model=tiny_llama(seed=1))
    trainer.train()
    assert abs(lines(tmp_path / "logs" / "margins" / "margins.jsonl")[0]["mean"]) > 0.01


def test_the_check_before_the_first_step_sees_stale_reference_values(tmp_path: Path) -> None:
    make(tmp_path / "first", reference_fingerprint="a name used twice", args={"max_steps": 1}).train()
    stale = make(tmp_path / "second", model=tiny_llama(seed=1), reference_fingerprint="a name used twice")
    with pytest.raises(ModelError, match=r"stale, remove the folder engine.reference_dir"):
        stale.train()


def test_training_twice_is_no_alarm(tmp_path: Path) -> None:
    trainer = make(tmp_path, args={"learning_rate": 1e-2})
    trainer.train()
    trainer.train()
    assert trainer.num_updates == 12


class PoisonAt(TrainerCallback):  # type: ignore[misc]
    """Makes one weight NaN for the steps given, as an overflow would."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.kept: torch.Tensor | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weight = model.lm_head.weight.data
        if state.global_step + 1 in self.steps:
            self.kept = weight.clone()
            weight[5] = math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.kept is not None:
            weight = model.lm_head.weight.data
            weight[5] = self.kept[5]
            self.changed = not torch.equal(weight, self.kept)
            self.kept = None


def test_a_step_with_nan_margins_is_left_out_and_its_rows_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poison, method = PoisonAt(3), risk()
    trainer = make(tmp_path, method=method, callbacks=[poison], args={"weight_decay": 0.1})
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        trainer.train()
    assert poison.changed is False
    assert method.updates == 5
    assert trainer.num_updates == 6
    message = next(text for text in caplog.messages if "NaN" in text)
    assert "step 3: 4 of 4 margins are NaN or infinite, rows [" in message
    assert math.isfinite(method.beta)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert json.loads((tmp_path / "run_summary.json").read_text())["nonfinite_margins"] == 4
    losses = [entry["loss"] for entry in train_logs(trainer)]
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, True, True, True]


def test_too_many_nan_margins_stop_the_run(tmp_path: Path) -> None:
    trainer = make(tmp_path, callbacks=[PoisonAt(2, 3, 4)], max_nonfinite=8)
    with pytest.raises(NonFiniteError, match=r"step 4: .*12 so far.*max_nonfinite = 8"):
        trainer.train()


def test_margins_that_stay_zero_raise_an_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.mlp" in name)
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(
        False
    )  # nothing that is trained reaches the output
    trainer = make(tmp_path, model=model)
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        trainer.train()
    alarms = [text for text in caplog.messages if "exactly 0 although the policy has moved" in text]
    (alarm,) = alarms  # One fault, one message.
    assert "alarms.zero_margins" in alarm


def test_the_self_check_stops_a_run_whose_scoring_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path)
    honest = trainer.policy.scorer.rows

    def chosen_seen_by_rejected(pairs: Any) -> Any:
        rows = honest(pairs)
        return replace(rows, spans=tuple(span._replace(prompt_end=span.ends[0]) for span in rows.spans))

    monkeypatch.setattr(trainer.policy.scorer, "rows", chosen_seen_by_rejected)
    with pytest.raises(ModelError, match="self-check failed"):
        trainer.train()


# ---- the seam ----


class Thresholding(PreferenceMethod):
    """Needs the whole batch before any loss: its beta depends on the rank of each margin in the batch."""

    name = "thresholding"
    needs = Needs(batch_evidence=True)

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def beta(self) -> float:
        return 0.1

    def control(self, evidence: torch.Tensor) -> Control:
        if evidence.requires_grad:
            raise AssertionError("evidence must be detached")
        self.batches.append(len(evidence))
        rank = evidence.argsort().argsort().to(evidence.dtype)
        return Control(0.1 + rank / len(evidence), torch.ones_like(evidence))

    def losses(self, forward: Any, control: Control) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(control.beta * forward.margins)


@pytest.mark.parametrize("budget", [1, 70, 4096])
def test_a_method_that_needs_the_whole_batch_gets_it_whatever_the_cut(tmp_path: Path, budget: int) -> None:
    method = Thresholding()
    trainer = make(
        tmp_path,
        method=method,
        ref_model=tiny_llama(seed=1),
        engine=EngineConfig(tokens_per_microbatch=budget),
        args={"max_steps": 1, "per_device_train_batch_size": 8},
    )
    trainer.train()
    assert method.batches == [8]
    margins = torch.tensor(lines(tmp_path / "logs/margins/margins.jsonl")[0]["sample"])
    beta = 0.1 + margins.argsort().argsort() / 8
    expected = -torch.nn.functional.logsigmoid(beta * margins).mean()
    assert train_logs(trainer)[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


class NoReference(DPO):
    name = "no-reference"
    needs = Needs(reference=False)


def test_a_method_without_reference_scores_none(tmp_path: Path) -> None:
    trainer = make(tmp_path, method=NoReference(), eval_dataset=random_pairs(4, seed=3))
    trainer.train()
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert (summary["reference_computed"], summary["reference_reused"]) == (0, 0)
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert math.isfinite(trainer.evaluate()["eval_loss"])


# ---- arguments, data, records ----


def test_a_trl_config_is_taken_as_args(tmp_path: Path) -> None:
    args = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_length=100,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        num_train_epochs=1,
        label_smoothing=0.1,
    )
    trainer = RiskBetaDPOTrainer(
        model=tiny_llama(),
        args=args,
        train_dataset=random_pairs(24),
        processing_class=word_tokenizer(),
        dynamic_cfg=RiskBetaDPOConfig(warmup_steps=2),
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.num_updates == 12
    assert trainer.truncation.max_length == 100
    assert isinstance(trainer.method, Risk)
    assert isinstance(trainer.method.loss, DPO)
    assert trainer.method.loss.config.label_smoothing == 0.1
    assert args.gradient_accumulation_steps == 3  # the user's object is as it was


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss_type", ["ipo"], "choose the loss by the method"),
        ("loss_weights", [2.0], "give the method the losses"),
        ("label_smoothing", 0.1, "give it to the method"),
        ("ld_alpha", 0.5, "or to its objective"),
        ("f_divergence_type", "forward_kl", "or to its objective"),
        ("use_weighting", True, "or to its objective"),
        ("deepspeed", "config.json", "DeepSpeed is not supported"),
        ("auto_find_batch_size", True, "lower engine.tokens_per_microbatch"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    setattr(args, field, value)
    with pytest.raises(ConfigError, match=f"training argument {field}=.*{message}"):
        make(tmp_path, args=args)


def test_the_risk_trainer_has_its_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use PreferenceTrainer to choose another"):
        RiskBetaDPOTrainer(tiny_llama(), args=training_arguments(tmp_path), method=DPO())
    with pytest.raises(ConfigError, match="delta must lie in"):
        RiskBetaDPOConfig(delta=1.5)
    with pytest.raises(ConfigError, match="jsonl_sample_size must be at least 0"):
        RiskBetaDPOConfig(jsonl_sample_size=-1)
    assert RiskBetaDPOConfig(log_margins=False).margin_log() is None
    assert RiskBetaDPOConfig(log_dir="x").margin_log() == MarginLogConfig(log_dir="x")


def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a datasets.Dataset .* got list"):
        make(tmp_path, train_dataset=[{"prompt": "a"}])
    with pytest.raises(DataError, match="holds no pair"):
        make(tmp_path, train_dataset=random_pairs(2).select([]))
    with pytest.raises(DataError, match="streams cannot be used"):
        make(tmp_path, train_dataset=random_pairs(4).to_iterable_dataset())


def test_a_trl_style_text_set_is_tokenised(tmp_path: Path) -> None:
    text = Dataset.from_dict(
        {
            "prompt": [f"w{i} w2" for i in range(8)],
            "chosen": [f" w{i} w30" for i in range(8)],
            "rejected": [" w40"] * 8,
        }
    )
    trainer = make(tmp_path, train_dataset=text)
    assert trainer.train_dataset[3]["prompt_ids"] == [7, 6]
    assert trainer.train_dataset[3]["chosen_ids"] == [7, 34, 2]
    assert trainer.train_dataset[3]["rejected_ids"] == [44, 2]
    trainer.train()
    assert trainer.num_pairs_seen == 8


def test_every_run_leaves_its_record(tmp_path: Path) -> None:
    method = risk()
    trainer = make(tmp_path, method=method, run_config={"a": 1}, args={"gradient_accumulation_steps": 2})
    trainer.train()
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    expected = {
        "method": method.summary(),
        "optimizer_steps": 3,
        "pairs_seen": 24,
        "tokens_seen": sum(
            2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
            for row in random_pairs(24)
        ),
        "controller_updates": 6,
        "pairs_per_update": 4,
        "reference_computed": 24,
        "reference_reused": 0,
        "nonfinite_margins": 0,
        "beta_final": method.beta,
        "num_ranks": 1,
        "layout": "packed",
        "margins_path": str(tmp_path / "logs/margins/margins.jsonl"),
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["pairs_per_second"] == pytest.approx(24 / summary["training_seconds"])
    assert 0 < summary["training_seconds"] < summary["wall_seconds"]
    assert 0 < summary["reference_seconds"] < summary["wall_seconds"]
    assert summary["peak_memory_bytes"] > 1e7
    assert {"python", "torch", "transformers", "dynamic-dpo"} <= summary["versions"].keys()
    assert len(summary["config_hash"]) == 64
    # One reading a controller update, with the customary names beside them.
    controller = lines(Path(summary["controller_path"]))
    assert [line["update"] for line in controller] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in controller] == [1, 1, 2, 2, 3, 3]
    assert controller[-1]["beta"] == method.beta
    assert {"tau", "p_hat", "fail", "u", "s"} <= controller[-1].keys()
    entry = train_logs(trainer)[-1]
    assert entry["beta"] == entry["risk/beta"] == method.beta
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    assert (
        names | {"margins/mean", "margins/p10", "margins/median", "margins/p90", "risk/tau"} <= entry.keys()
    )


def test_a_new_run_moves_an_earlier_log_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        make(tmp_path, args={"max_steps": 2}).train()
    folders = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert folders == ["margins", "margins.old-1", "margins.old-2"]
    assert [len(lines(tmp_path / "logs" / name / "margins.jsonl")) for name in folders] == [2, 2, 2]
    assert caplog.text.count("was moved to") == 2


def test_a_bfloat16_run_trains_evaluates_and_saves(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        method=risk(),
        eval_dataset=random_pairs(5, seed=3),
        args={"bf16": True, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 1e-2},
    )
    trainer.train()
    assert (tmp_path / "checkpoint-6" / "controller_state.json").is_file()
    assert all(math.isfinite(entry["loss"]) for entry in train_logs(trainer))
    assert next(trainer.model.parameters()).dtype == torch.float32
    margins = margins_of(trainer.model, tiny_llama(), random_pairs(5, seed=3))
    assert trainer.evaluate()["eval_margins/mean"] == pytest.approx(sum(margins) / 5, abs=0.5)
