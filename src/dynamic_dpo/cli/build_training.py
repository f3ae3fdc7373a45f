"""From the settings of a file to the objects of a run: arguments, models, adapters, method."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig
    from dynamic_dpo.data.prepare import PreparedPreferences
    from dynamic_dpo.methods.base import PreferenceMethod
    from dynamic_dpo.models.adapters import ModelFiles
    from dynamic_dpo.trainers.watch.sampling import Sampling

# The trainer has no word for "only at the end".
MORE_STEPS_THAN_ANY_RUN = 10**9


def check_device(config: TrainingConfig) -> None:
    """Raise `ConfigError` where settings ask for a GPU that is not there, or the launcher for what is refused."""
    import torch

    from dynamic_dpo.trainers.arguments import check_parallelism

    check_parallelism()
    if torch.cuda.is_available():
        return
    if config.precision != "fp32":
        raise ConfigError(
            f"precision is {config.precision}, which needs a CUDA device, and none is visible; "
            "use precision=fp32 on a CPU"
        )
    if config.peft is not None and config.peft.load_in_4bit:
        raise ConfigError("peft.load_in_4bit needs a CUDA device, and none is visible")
    if config.engine.offload_activations:
        raise ConfigError("engine.offload_activations needs a CUDA device, and none is visible")


def common_arguments(config: TrainingConfig, section: Any) -> dict[str, Any]:
    """Return the Hugging Face training arguments that both trainings take from their section."""
    import torch

    if section.wandb_project:
        os.environ.setdefault("WANDB_PROJECT", section.wandb_project)
    return {
        "output_dir": section.save_dir,
        "run_name": section.run_name,
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": section.batch_size,
        "per_device_eval_batch_size": section.eval_batch_size,
        "learning_rate": section.learning_rate,
        "warmup_steps": section.warmup_steps,
        "logging_steps": section.log_steps,
        "save_strategy": "steps",
        "save_steps": section.save_steps or MORE_STEPS_THAN_ANY_RUN,
        "push_to_hub": section.push_to_hub,
        "hub_model_id": section.hub_model_id,
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "use_cpu": not torch.cuda.is_available(),
    }


def dpo_arguments(config: TrainingConfig, *, has_validation: bool) -> Any:
    """Return the training arguments of ``train-dpo``.

    Raises:
        ConfigError: If a tracker is asked for that is not installed.
    """
    from transformers import TrainingArguments

    section = config.dpo_training
    evaluates = has_validation and section.eval_steps is not None
    settings = {
        **common_arguments(config, section),
        "gradient_accumulation_steps": section.gradient_accumulation,
        "activation_checkpointing": config.engine.gradient_checkpointing,
        "max_grad_norm": section.max_grad_norm,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": section.eval_steps if evaluates else None,
        "report_to": trackers(section.report),
    }
    return TrainingArguments(**(settings | section.extra))


def trackers(report: str | Sequence[str] | None, key: str = "dpo_training.report") -> list[str]:
    """Return the trackers to report to.

    Args:
        report: Their names; ``None`` and ``none``: none; ``all``: those that are installed.
        key: The setting that names them.

    Raises:
        ConfigError: If one is not known to the installed transformers, or cannot be had here.
    """
    from dynamic_dpo.config.trackers import report_fault, tracker_names, unusable_trackers

    if (fault := report_fault(report)) is not None:
        raise ConfigError(f"{key} {fault}, got {report!r}")
    names = tracker_names(report)
    if unusable := unusable_trackers(names):
        remedies = "; ".join(f"{one.name}: {one.remedy}" for one in unusable)
        raise ConfigError(f"{key} asks for what is not installed or not set up here: {remedies}")
    return names


def build_sampling(config: TrainingConfig, *, as_chat: bool) -> Sampling | None:
    """Return what ``sampling`` asks a training to write, ``None`` where it asks for nothing.

    Args:
        config: Checked settings.
        as_chat: Whether its texts are user's turns, as the rows are.

    Raises:
        ConfigError: If a scorer's function cannot be found.
    """
    section = config.sampling
    if section is None:
        return None
    from dynamic_dpo.eval.judges.function import FunctionScorer
    from dynamic_dpo.eval.judges.reward_model import RewardModelScorer
    from dynamic_dpo.runs.samples import SamplingConfig
    from dynamic_dpo.trainers.watch.sampling import Sampling

    prompts = section.prompts
    if prompts is not None and as_chat:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
    scorers = {
        name: RewardModelScorer(one.reward_model)
        if one.reward_model
        else FunctionScorer(str(one.function), setting=f"sampling.scorers.{name}.function")
        for name, one in section.scorers.items()
    }
    settings = SamplingConfig(**section.model_dump(exclude={"prompts", "scorers"}))
    return Sampling(prompts, settings, scorers)


def load_policy(config: TrainingConfig, files: ModelFiles) -> Any:
    """Load the policy with the attention and quantisation the settings ask for.

    The frozen base of an adapter is loaded in bfloat16 where that is the precision: half the memory, and what
    autocast would round its matrices to anyway. What is trained is float32.

    Raises:
        ModelError: If it cannot be loaded.
    """
    import torch

    from dynamic_dpo.models.trained_adapter import load_policy_files

    options: dict[str, Any] = {}
    if (config.peft is not None or files.adapter is not None) and config.precision == "bf16":
        options["dtype"] = torch.bfloat16
    if config.engine.attn_implementation:
        options["attn_implementation"] = config.engine.attn_implementation
    if config.peft is not None and config.peft.load_in_4bit:
        from transformers import BitsAndBytesConfig

        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError("peft.load_in_4bit needs bitsandbytes: pip install 'dynamic-dpo[qlora]'")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["dtype"] = torch.bfloat16
    return load_policy_files(files, gradient_checkpointing=config.engine.gradient_checkpointing, **options)


def build_peft_config(config: TrainingConfig, files: ModelFiles) -> Any:
    """Return the configuration of a fresh adapter, or ``None``: for full fine-tuning, or where the policy has one.

    Raises:
        ConfigError: If the settings describe another adapter than the policy's.
        ModelError: If peft is not installed.
    """
    if config.peft is None:
        return None
    if files.adapter is not None:
        from dynamic_dpo.models.trained_adapter import check_section

        check_section(config.peft.model_dump(exclude_unset=True), files.adapter)
        return None
    if importlib.util.find_spec("peft") is None:
        raise ModelError("adapters need the peft package: pip install 'dynamic-dpo[peft]'")
    from peft import LoraConfig

    section = config.peft
    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=section.target_modules,
        bias=section.bias,
        task_type="CAUSAL_LM",
    )


def build_method(config: TrainingConfig, args: Any) -> PreferenceMethod:
    """Return the method that ``method.name`` chooses, sized for the run's controller batches."""
    from dynamic_dpo.methods.base import BuildContext
    from dynamic_dpo.methods.objective import ObjectiveConfig, adjusted
    from dynamic_dpo.methods.table import METHODS
    from dynamic_dpo.trainers.arguments import pairs_per_update

    name = config.method.name
    context = BuildContext(
        own=config.settings_of(name),
        beta_0=config.beta_update.beta_0,
        scope=config.method.scope,
        pairs_per_update=lambda scope: pairs_per_update(scope, args),
        device_batch=args.per_device_train_batch_size,
    )

    def without_beta(other: str) -> PreferenceMethod:
        # Beta is the controller's, or the method's whose loss this one is added to.
        own = config.settings_of(other)
        own |= {"beta": None} if "beta" in own else {}
        return METHODS[other].build(replace(context, own=own))

    def with_objective(loss: PreferenceMethod) -> PreferenceMethod:
        added = [(without_beta(other), weight) for other, weight in config.objective.added().items()]
        return adjusted(loss, config.read(ObjectiveConfig), added)

    if METHODS[name].steers_beta:
        loss = with_objective(without_beta(config.method.loss))
        return METHODS[name].build(replace(context, loss=loss))
    return with_objective(METHODS[name].build(context))


def prepare_pairs(
    config: TrainingConfig, tokenizer: Any, report_dir: str | Path | None
) -> PreparedPreferences:
    """Return the pairs that a training file asks for: of one set, or of a mixture.

    Args:
        config: Checked settings.
        tokenizer: The policy's tokenizer.
        report_dir: Folder of ``data_report.json`` and ``quarantine.jsonl``; ``None`` writes neither.

    Raises:
        DataError: If a set cannot be used.
    """
    data = config.dataset
    shared: dict[str, Any] = {
        "template_kwargs": data.chat_template_kwargs,
        "chat_template": data.chat_template,
        "val_ratio": data.val_ratio,
        "seed": data.seed,
        "max_length": data.max_len,
        "max_prompt_length": data.max_prompt_length,
        "max_completion_length": data.max_completion_length,
        "truncation_mode": data.truncation_mode,
        "answer_tokens": data.answer_tokens,
        "quarantine_max_share": data.quarantine_max_share,
        "report_dir": report_dir,
        "num_proc": config.engine.num_proc,
    }
    if data.mixture:
        from dynamic_dpo.data.mixtures.mixture import MixtureSet, prepare_mixture

        sets = {name: MixtureSet(**one.model_dump()) for name, one in data.mixture.items()}
        return prepare_mixture(sets, tokenizer, **shared)
    from dynamic_dpo.data import prepare_preferences

    return prepare_preferences(
        str(data.dataset_name),
        tokenizer,
        subset=data.subset,
        eval_dataset_name=data.eval_dataset_name,
        generated_data=data.generated_data,
        columns=data.columns,
        ranking=data.ranking,
        **shared,
    )
