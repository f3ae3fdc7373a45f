"""Every field of a `trl.DPOConfig` is honoured, refused, or named in a warning: nothing given is lost in silence."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import EvalPrediction, TrainingArguments
from trl import DPOConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.trainers import RiskBetaDPOTrainer
from dynamic_dpo.trainers.unused_arguments import UNUSED
from families.configurations import tiny_model
from helpers_trl import arguments
from tiny import random_pairs, tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`pad_token` is deprecated:FutureWarning",
)

# Fields of TRL's own that do what they say, and the test that shows it.
HONOURED = {
    "model_init_kwargs": "test_a_named_model_is_loaded_as_the_arguments_say",
    "router_aux_loss_coef": "test_the_weight_of_a_balancing_loss_is_for_mixtures_of_experts",
    "disable_dropout": "test_dropout_is_as_the_arguments_say",
    "dataset_num_proc": "test_settings_reach_what_reads_them",
    "max_length": "test_settings_reach_what_reads_them",
    "truncation_mode": "test_settings_reach_what_reads_them",
    "activation_offloading": "test_settings_reach_what_reads_them",
    # Always so: the reference is scored before the first step.
    "precompute_ref_log_probs": "test_the_reference_is_scored_before_the_first_step_whatever_is_said",
    # tests/trainers/test_trl_arguments.py trains ten steps beside TRL with each.
    "loss_type": "test_ten_steps_with_the_same_arguments_are_trls",
    "loss_weights": "test_ten_steps_with_the_same_arguments_are_trls",
    "ld_alpha": "test_ten_steps_with_the_same_arguments_are_trls",
    "f_divergence_type": "test_ten_steps_with_the_same_arguments_are_trls",
    "f_alpha_divergence_coef": "test_ten_steps_with_the_same_arguments_are_trls",
    "label_smoothing": "test_ten_steps_with_the_same_arguments_are_trls",
    "use_weighting": "test_ten_steps_with_the_same_arguments_are_trls",
    "discopop_tau": "test_ten_steps_with_the_same_arguments_are_trls",
    "sync_ref_model": "test_a_reference_follows_as_the_arguments_say",
    "ref_model_mixup_alpha": "test_a_reference_follows_as_the_arguments_say",
    "ref_model_sync_steps": "test_a_reference_follows_as_the_arguments_say",
    "beta": "test_beta_of_the_arguments_is_where_the_controller_starts",
    # tests/trainers/checkpoints/test_best_weights.py: by `keep_best`.
    "load_best_model_at_end": "test_the_arguments_of_transformers_mean_the_same",
}
# A value with which a run is refused, of any field; the message names it.
REFUSED: dict[str, Any] = {
    "trust_remote_code": True,
    "auto_find_batch_size": True,
    "enable_jit_checkpoint": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "train_sampling_strategy": "group_by_length",
    "use_liger_kernel": True,
}
# A value with which a run is warned of, for each field without effect.
WARNED: dict[str, Any] = {
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "include_num_input_tokens_seen": "all",
    "length_column_name": "size",
    "label_names": ["labels"],
    "prediction_loss_only": True,
    "include_for_metrics": ["loss"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "liger_kernel_config": {"rope": True},
    "resume_from_checkpoint": "checkpoint-1",
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "precompute_ref_batch_size": 2,
    "pad_token": "<pad>",
}
# Read by the Hugging Face trainer and accelerate, on which ours is built, in its loop and its setup.
OF_THE_BASE = {
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps"),
    *("max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend"),
    *("torch_compile_mode", "use_cache", "neftune_noise_alpha"),
    *(
        "torch_empty_cache_steps",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_on_each_node",
    ),
    *(
        "log_level",
        "log_level_replica",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
    ),
    *("trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay"),
    *("per_device_eval_batch_size", "eval_on_start", "save_only_model", "save_strategy", "save_steps"),
    *(
        "save_on_each_node",
        "save_total_limit",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
    ),
    *("hub_strategy", "hub_always_push", "hub_revision", "metric_for_best_model"),
    *("greater_is_better", "ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism"),
    *("seed", "data_seed", "use_cpu", "accelerator_config", "dataloader_drop_last", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters"),
    *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp"),
    *("fsdp_config", "debug", "skip_memory_metrics"),
}
# Ways to many GPUs that `check_parallelism` refuses, in tests of its own.
OF_PARALLELISM = {"deepspeed", "parallelism_config"}
# What is meant comes about whatever they say: all columns reach the engine, and wrong numbers are seen.
ALWAYS_SO = {"remove_unused_columns", "logging_nan_inf_filter"}
# For scripts around a trainer, in the words of transformers' documentation; no trainer reads them.
OF_SCRIPTS = {"do_train", "do_eval", "do_predict", "local_rank"}


def trainer_of(folder: Path, model: Any = None, **settings: Any) -> RiskBetaDPOTrainer:
    more = {name: settings.pop(name) for name in ("eval_dataset", "compute_metrics") if name in settings}
    return RiskBetaDPOTrainer(
        model=tiny_llama() if model is None else model,
        args=arguments(folder, **settings),
        train_dataset=random_pairs(8),
        processing_class=word_tokenizer(),
        engine=EngineConfig(reference_dir=str(folder / "reference")),
        **more,
    )


def test_every_field_is_in_one_place() -> None:
    groups = (HONOURED, REFUSED, WARNED, OF_THE_BASE, OF_PARALLELISM, ALWAYS_SO, OF_SCRIPTS)
    listed = [name for group in groups for name in group]
    assert sorted(listed) == sorted(entry.name for entry in fields(DPOConfig))
    assert WARNED.keys() == UNUSED.keys()
    # All fields of TRL's own are honoured, refused or warned of.
    own = {entry.name for entry in fields(DPOConfig)} - {entry.name for entry in fields(TrainingArguments)}
    assert own <= {*HONOURED, *REFUSED, *WARNED}


@pytest.mark.parametrize("name", sorted(set(HONOURED.values())))
def test_what_shows_that_a_field_is_honoured_exists(name: str) -> None:
    folder = Path(__file__).parent
    assert any(
        f"def {name}(" in (folder / file).read_text()
        for file in ("test_trl_fields.py", "test_trl_arguments.py", "checkpoints/test_best_weights.py")
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_is_refused_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^training argument {name}="):
        trainer_of(tmp_path, **{name: REFUSED[name]})


@pytest.mark.parametrize("name", WARNED)
def test_a_field_without_effect_is_named_in_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        trainer_of(tmp_path)
    assert "without effect" not in caplog.text
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        trainer_of(tmp_path, **{name: WARNED[name]})
    assert f"training arguments without effect here: {name}={WARNED[name]!r}: " in caplog.text


def test_a_reference_follows_as_the_arguments_say(tmp_path: Path) -> None:
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
    trainer = trainer_of(tmp_path, **settings)
    assert (trainer.reference_sync.steps, trainer.reference_sync.mixup_alpha) == (2, 0.5)


def test_with_an_adapter_from_a_folder_no_reference_follows(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="reference_sync"):
        trainer_of(tmp_path, str(tmp_path / "adapter"), sync_ref_model=True)


def test_a_named_model_is_loaded_as_the_arguments_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": "float64"}
    trainer = trainer_of(tmp_path, str(tmp_path / "model"), model_init_kwargs=options)
    assert trainer.model.config._attn_implementation == "eager"
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float64}
    for option, message in (
        ({"trust_remote_code": True}, "never run"),
        ({"device_map": "auto"}, "the trainer places the model"),
        ({"weights_only": False}, "could then run code of its own"),
        ({"revision": "v2"}, r"model_init_kwargs\['revision'\] is 'v2', but .* is local"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer_of(tmp_path, str(tmp_path / "model"), model_init_kwargs=option)
    trainer_of(tmp_path, model_init_kwargs=options)
    assert "model_init_kwargs" in caplog.text
    assert "the model is loaded already" in caplog.text


def test_the_weight_of_a_balancing_loss_is_for_mixtures_of_experts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef=0.1 .*LlamaForCausalLM is none"):
        trainer_of(tmp_path, router_aux_loss_coef=0.1)
    assert not trainer_of(tmp_path).aux_loss_enabled
    trainer = trainer_of(tmp_path, tiny_model("mixtral"), router_aux_loss_coef=0.25)
    assert trainer.aux_loss_enabled
    assert trainer.policy.scorer.router is not None
    assert trainer.policy.scorer.router.coefficient == 0.25
    assert not trainer_of(tmp_path, tiny_model("mixtral"), router_aux_loss_coef=0.0).aux_loss_enabled


@pytest.mark.parametrize("disabled", [True, False])
def test_dropout_is_as_the_arguments_say(disabled: bool, tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    trainer = trainer_of(tmp_path, model, disable_dropout=disabled)
    assert trainer.model.model.layers[0].self_attn.attention_dropout == (0.0 if disabled else 0.1)


def test_settings_reach_what_reads_them(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_length=7, dataset_num_proc=1, activation_offloading=True)
    assert trainer.truncation.max_length == 7
    assert trainer.data.num_proc == 1
    assert trainer.policy.engine.offload_activations
    with pytest.warns(FutureWarning, match="keep_end"):
        assert trainer_of(tmp_path, truncation_mode="keep_end").truncation.truncation_mode == "keep_end"


@pytest.mark.parametrize("said", [False, True])
def test_the_reference_is_scored_before_the_first_step_whatever_is_said(said: bool, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, precompute_ref_log_probs=said)
    trainer.train()
    assert "ref_chosen_logps" in trainer.train_dataset.column_names


def test_pairs_to_train_on_are_asked_for_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train_dataset is required"):
        RiskBetaDPOTrainer(tiny_llama(), args=arguments(tmp_path), processing_class=word_tokenizer())


def test_own_metrics_are_made_of_the_rewards_of_all_pairs(tmp_path: Path) -> None:
    seen: list[EvalPrediction] = []

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        chosen, rejected = prediction.predictions.T
        return {"mine": float((chosen > rejected).mean()), "eval_theirs": 7.0}

    trainer = trainer_of(
        tmp_path, tiny_llama(seed=2), eval_dataset=random_pairs(6, seed=5), compute_metrics=metrics,
        learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_mine"] == pytest.approx(found["eval_rewards/accuracies"])
    assert found["eval_theirs"] == 7.0
    (last,) = seen[-1:]
    assert last.predictions.shape == (6, 2)
    assert np.array_equal(last.label_ids, np.zeros(6))
    assert last.predictions[:, 0].mean() == pytest.approx(found["eval_rewards/chosen"])
    assert np.abs(last.predictions).max() > 0


def test_the_card_names_method_data_and_beta(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "my-model", beta=0.3)
    assert {"dynamic-dpo", "dpo"} <= set(trainer.model.model_tags)
    assert trainer.ref_model is None
    trainer.create_model_card(dataset_name="org/pairs", tags=["mine"])
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert card.data.tags == ["dynamic-dpo", "dpo", "mine"]
    assert card.data.datasets == ["org/pairs"]
    assert "- Method: risk\n- Data: org/pairs, 8 pairs\n- Beta at the end: 0.3\n" in card.content
    with pytest.raises(ConfigError, match="has no license"):
        trainer.create_model_card(license="mit")


def test_a_reference_that_is_given_is_there_until_it_is_scored(tmp_path: Path) -> None:
    reference = tiny_llama(seed=5)
    trainer = RiskBetaDPOTrainer(
        tiny_llama(), reference, arguments(tmp_path), random_pairs(8), processing_class=word_tokenizer()
    )
    assert trainer.ref_model is reference
    with pytest.raises(ModelError, match="the same object"):
        RiskBetaDPOTrainer(
            reference, reference, arguments(tmp_path), random_pairs(8), processing_class=word_tokenizer()
        )
