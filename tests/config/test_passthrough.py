"""Fields of the Hugging Face training arguments in our sections, checked by the installed transformers."""

import math

import pytest
from transformers import TrainingArguments

from dynamic_dpo.config import get_training_config
from dynamic_dpo.config.base import fields_by_key, walk
from dynamic_dpo.config.passthrough import (
    _DECIDED_BY,
    _DECIDED_BY_IN_DPO,
    _OUR_NAME,
    _STRATEGIES,
    training_argument_types,
)
from dynamic_dpo.config.schema import TrainingConfig
from dynamic_dpo.config.sections.training import DPOTrainingSection
from dynamic_dpo.errors import ConfigError


def dpo_training(section="dpo_training", **keys):
    return getattr(get_training_config({"policy_name": "m", section: keys}), section)


def problem_of(section="dpo_training", **keys):
    with pytest.raises(ConfigError) as caught:
        dpo_training(section, **keys)
    return str(caught.value)


def test_a_training_argument_is_collected_in_the_type_of_its_field():
    extra = dpo_training(
        weight_decay=1, optim="adamw_torch", lr_scheduler_kwargs={"num_cycles": 2}, max_steps=8, tf32=None
    ).extra
    assert extra == {
        "weight_decay": 1.0,
        "optim": "adamw_torch",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "max_steps": 8,
        "tf32": None,
    }
    assert type(extra["weight_decay"]) is float


def test_what_passes_is_accepted_by_the_training_arguments(tmp_path):
    extra = dpo_training(lr_scheduler_type="cosine", weight_decay=0.1, save_strategy="epoch", seed=7).extra
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **extra)
    assert (args.lr_scheduler_type, args.weight_decay, args.save_strategy, args.seed) == (
        "cosine",
        0.1,
        "epoch",
        7,
    )


def test_extras_are_merged_back_into_the_section_and_load_again():
    cfg = get_training_config(
        {"policy_name": "m", "sft_training": {"weight_decay": 0.1, "report_to": "wandb"}}
    )
    assert cfg.to_dict()["sft_training"]["weight_decay"] == 0.1
    assert get_training_config(cfg.to_dict()) == cfg


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("adam_beta1", "high", "must be a number, got 'high' (str)"),
        ("adam_beta1", math.nan, "must be a finite number, got nan"),
        ("max_steps", True, "must be a whole number, got true (bool)"),
        ("max_steps", "8", "must be a whole number, got '8' (str)"),
        ("tf32", 1, "must be true or false or null, got 1"),
        ("save_strategy", "never", "must be one of no, steps, epoch, best, got 'never' (str)"),
        ("lr_scheduler_type", 3, "must be one of linear, cosine, "),
        (
            "lr_scheduler_kwargs",
            {"a": [{"b": "No"}]},
            "must say true or false instead of No, which YAML 1.2 reads",
        ),
        ("lr_scheduler_kwargs", {"a": math.inf}, "must hold only what YAML can: mappings, "),
        ("hub_token", "hf_x", "must not stand in a file"),
    ],
)
def test_a_training_argument_of_a_wrong_type_is_worded_like_our_own_keys(key, value, problem):
    assert problem_of(**{key: value}).startswith(f"dpo_training.{key} {problem}")


def test_the_attribute_that_holds_the_passthrough_is_not_itself_a_key():
    assert problem_of(extra={"weight_decay": 0.1}).startswith("unknown key dpo_training.extra; ")


def test_a_secret_is_not_repeated_in_the_error():
    assert "hf_secret" not in problem_of(hub_token="hf_secret")


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("per_device_train_batch_size", "dpo_training.batch_size"),
        ("per_device_eval_batch_size", "dpo_training.eval_batch_size"),
        ("gradient_accumulation_steps", "dpo_training.gradient_accumulation"),
        ("output_dir", "dpo_training.save_dir"),
        ("num_train_epochs", "dpo_training.epochs"),
        ("logging_steps", "dpo_training.log_steps"),
        ("logging_strategy", "dpo_training.log_steps"),
        ("report_to", "dpo_training.report"),
        ("resume_from_checkpoint", "dpo_training.resume"),
        ("bf16", "precision"),
        ("fp16", "precision"),
        ("gradient_checkpointing", "engine.gradient_checkpointing"),
        ("label_smoothing_factor", "dpo.label_smoothing"),
    ],
)
def test_a_training_argument_that_a_key_of_ours_decides_is_led_to_that_key(foreign, ours):
    assert problem_of(**{foreign: 1}) == (
        f"dpo_training.{foreign} is decided by {ours}; remove it and set {ours} instead"
    )


def test_an_argument_that_no_key_of_sft_decides_passes_there():
    extra = dpo_training("sft_training", gradient_accumulation_steps=4, report_to="wandb").extra
    assert extra == {"gradient_accumulation_steps": 4, "report_to": "wandb"}
    assert problem_of("sft_training", bf16=True).startswith("sft_training.bf16 is decided by precision;")


def test_a_strategy_switches_off_the_default_of_its_steps():
    section = dpo_training(save_strategy="epoch", eval_strategy=False)
    assert (section.save_steps, section.eval_steps) == (None, None)
    # YAML 1.1 reads a bare `no` as false; the training arguments want the text.
    assert section.extra == {"save_strategy": "epoch", "eval_strategy": "no"}
    assert dpo_training(eval_strategy="steps").eval_steps == 100


def test_a_strategy_that_contradicts_given_steps_is_an_error():
    assert problem_of(save_strategy="epoch", save_steps=3) == (
        "dpo_training.save_strategy contradicts dpo_training.save_steps (3); remove one of them, "
        "got 'epoch' (str)"
    )
    assert problem_of(eval_strategy="steps", eval_steps=None) == (
        "dpo_training.eval_strategy contradicts dpo_training.eval_steps, which is null; "
        "give a number of steps there, got 'steps' (str)"
    )


def test_the_tables_of_decided_arguments_name_real_arguments_and_real_keys():
    foreign = {*_OUR_NAME, *_DECIDED_BY, *_DECIDED_BY_IN_DPO, *_STRATEGIES}
    assert foreign - set(training_argument_types()) == set()
    assert {*_OUR_NAME.values(), *_STRATEGIES.values()} <= set(fields_by_key(DPOTrainingSection))
    paths = {path for path, _, _ in walk(TrainingConfig)}
    assert {*_DECIDED_BY.values(), *_DECIDED_BY_IN_DPO.values()} <= paths


def test_every_default_of_the_training_arguments_passes_its_own_check():
    own = set(fields_by_key(DPOTrainingSection))
    decided = {*own, *_OUR_NAME, *_DECIDED_BY, *_DECIDED_BY_IN_DPO, *_STRATEGIES, "hub_token"}
    defaults = {
        name: field.default
        for name, field in TrainingArguments.__dataclass_fields__.items()
        if name not in decided and isinstance(field.default, str | int | float | None)
    }
    assert len(defaults) > 60
    assert dpo_training(**defaults).extra == defaults


def test_no_key_of_ours_in_a_training_section_shadows_an_argument_of_another_meaning():
    # The same name must mean the same: these are set from our key under that name.
    shared = set(fields_by_key(DPOTrainingSection)) & set(training_argument_types())
    assert shared == {
        "learning_rate", "warmup_steps", "max_grad_norm", "eval_steps", "save_steps", "run_name",
        "push_to_hub", "hub_model_id",
    }  # fmt: skip
