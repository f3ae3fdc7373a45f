"""``train-sft``: supervised fine-tuning on the chosen answers of preference rows, or on conversations."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import claim_output_folder, run_training
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.files import CONFIG
from dynamic_dpo.utils.process_group import is_first_rank, on_first_rank

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig

logger = logging.getLogger("dynamic_dpo")

_OF_PAIRS = (
    "max_len",
    "max_prompt_length",
    "max_completion_length",
    "truncation_mode",
    "answer_tokens",
    "generated_data",
)

DESCRIPTION = "Fine-tune a model on conversations, with the loss on completions only."
EXAMPLE = "train-sft --config configs/sft.yaml sft_training.save_dir=runs/mine"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_training("train-sft", DESCRIPTION, train_sft, argv, section="sft_training", example=EXAMPLE)


def train_sft(config: TrainingConfig) -> Any:
    """Run a whole fine-tuning.

    Args:
        config: Checked settings; ``policy_name``, ``precision``, ``dataset``, ``sft_training``, ``sampling``,
            ``alarms`` and ``peft`` are read.

    Returns:
        The trainer, after training, with the model saved and checked.

    Raises:
        ConfigError: If the settings cannot be carried out here, or the output folder is taken.
        DataError: If the data cannot be used.
        ModelError: If the model cannot be loaded.
        CheckpointError: If the saved model is not what was trained.
    """
    section, data = config.sft_training, config.dataset
    if not data.dataset_name:
        raise ConfigError("dataset.dataset_name is required: a hub name, or a local file or folder of rows")
    resume = section.extra.get("resume_from_checkpoint") or False
    checkpoint = on_first_rank(lambda: claim_output_folder(section.save_dir, resume=resume))

    from dynamic_dpo.utils.process import prepare_process

    prepare_process()
    from transformers import set_seed
    from trl import SFTConfig

    from dynamic_dpo.cli.build_training import (
        build_peft_config,
        build_sampling,
        check_device,
        common_arguments,
        load_policy,
        trackers,
    )
    from dynamic_dpo.data import prepare_sft
    from dynamic_dpo.data.render import require_chat_template
    from dynamic_dpo.models.sources import load_tokenizer
    from dynamic_dpo.models.trained_adapter import find_policy
    from dynamic_dpo.runs.alarms import AlarmConfig
    from dynamic_dpo.trainers.checkpoints.saved import save_and_check
    from dynamic_dpo.trainers.sft_trainer import build_sft_trainer

    check_device(config)
    _say_what_is_not_read(config)
    files = find_policy(config.policy_name)
    peft_config = build_peft_config(config, files)
    tokenizer = load_tokenizer(files.tokenizer)
    if data.chat_template:
        require_chat_template(tokenizer)
    sampling = build_sampling(config, as_chat=bool(tokenizer.chat_template))
    prepared = prepare_sft(
        data.dataset_name,
        tokenizer,
        subset=data.subset,
        eval_dataset_name=data.eval_dataset_name,
        columns=data.columns,
        ranking=data.ranking,
        template_kwargs=data.chat_template_kwargs,
        val_ratio=data.val_ratio,
        seed=data.seed,
        quarantine_max_share=data.quarantine_max_share,
        report_dir=section.save_dir if is_first_rank() else None,
        num_proc=config.engine.num_proc,
    )
    settings = {
        **common_arguments(config, section),
        "save_only_model": section.save_only_model,
        "max_length": section.max_length,
        "activation_checkpointing": config.engine.gradient_checkpointing,
        "report_to": "none",
        **section.extra,
    }
    settings["report_to"] = trackers(settings["report_to"], "sft_training.report_to")
    args = SFTConfig(**settings)
    set_seed(args.seed)  # Weights that the files lack are drawn in loading.
    trainer = build_sft_trainer(
        load_policy(config, files),
        args,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        tokenizer=tokenizer,
        peft_config=peft_config,
        sampling=sampling,
        alarms=config.read(AlarmConfig),
    )
    if is_first_rank():
        config.save(Path(section.save_dir) / CONFIG)
    trainer.train(resume_from_checkpoint=trainer.find_checkpoint() if checkpoint is True else checkpoint)
    trainer.save_state()
    save_and_check(trainer, section.save_dir)
    logger.info("saved and checked: %s", section.save_dir)
    if section.push_to_hub:
        trainer.push_to_hub()
    return trainer


def _say_what_is_not_read(config: TrainingConfig) -> None:
    """Name the settings of the section dataset that were given and that only preference training reads."""
    given = {
        name: getattr(config.dataset, name)
        for name in _OF_PAIRS
        if getattr(config.dataset, name) != type(config.dataset).model_fields[name].default
    }
    if given and is_first_rank():
        logger.warning(
            "train-sft does not read %s, which are of pairs: sft_training.max_length limits a conversation, and the "
            "loss is on its last answer",
            ", ".join(f"dataset.{name}={value!r}" for name, value in given.items()),
        )


if __name__ == "__main__":
    sys.exit(main())
