"""``train-dpo``: from a configuration file and preference rows to a trained, saved and checked policy."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import claim_output_folder, run_training
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs import files
from dynamic_dpo.utils.process_group import is_first_rank, on_first_rank

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig

logger = logging.getLogger("dynamic_dpo")

DESCRIPTION = "Train a policy on preference pairs with DPO whose beta is controlled while training runs."
EXAMPLE = "train-dpo --config configs/dpo.yaml dpo_training.save_dir=runs/mine beta_update.beta_0=0.05"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_training("train-dpo", DESCRIPTION, train_dpo, argv, section="dpo_training", example=EXAMPLE)


def train_dpo(config: TrainingConfig) -> Any:
    """Run a whole training.

    Args:
        config: Checked settings.

    Returns:
        The trainer, after training, with the model saved and checked.

    Raises:
        ConfigError: If the settings cannot be carried out here, or the output folder is taken.
        DataError: If the data cannot be used.
        ModelError: If a model cannot be loaded or trained.
        CheckpointError: If there is nothing whole to resume from, it is another run's, or the saved model is not
            what was trained.
    """
    section = config.dpo_training
    data = config.dataset
    if not data.dataset_name and not data.mixture:
        raise ConfigError("dataset.dataset_name is required: a hub name, or a local file or folder of rows")
    checkpoint = on_first_rank(lambda: claim_output_folder(section.save_dir, resume=section.resume))

    from dynamic_dpo.utils.process import prepare_process

    # Before the first operation, so that every thread of every pool has it.
    prepare_process()
    from transformers import set_seed

    from dynamic_dpo.cli.build_training import (
        build_method,
        build_peft_config,
        build_sampling,
        check_device,
        dpo_arguments,
        load_policy,
        prepare_pairs,
    )
    from dynamic_dpo.engine.config import EngineConfig
    from dynamic_dpo.methods.objective import ReferenceSync
    from dynamic_dpo.models.sources import is_same_model, load_tokenizer
    from dynamic_dpo.models.trained_adapter import find_policy, gives_base_back, policy_fingerprint
    from dynamic_dpo.models.vocabulary import check_same_tokens
    from dynamic_dpo.runs.alarms import AlarmConfig
    from dynamic_dpo.runs.margin_log import MarginLogConfig
    from dynamic_dpo.trainers.checkpoints.saved import save_and_check
    from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
    from dynamic_dpo.utils.debug import log_dpo_debug_samples

    check_device(config)
    sampling = build_sampling(config, as_chat=config.dataset.chat_template)
    policy, reference = find_policy(config.policy_name), find_policy(config.reference_name)
    peft_config = build_peft_config(config, policy)
    same_base = is_same_model(policy.base, reference.base)
    own_reference = same_base and _same_folder(policy.adapter, reference.adapter)
    tokenizer = load_tokenizer(policy.tokenizer)
    if not own_reference:
        check_same_tokens(
            tokenizer,
            load_tokenizer(reference.tokenizer),
            policy_name=config.policy_name,
            reference_name=config.reference_name,
        )

    prepared = prepare_pairs(config, tokenizer, section.save_dir if is_first_rank() else None)
    args = dpo_arguments(config, has_validation=prepared.validation is not None)
    set_seed(args.seed)  # Weights that the files lack are drawn in loading.
    model = load_policy(config, policy)
    base_is_reference = (
        same_base and reference.adapter is None and not own_reference and gives_base_back(model)
    )
    method = build_method(config, args)
    log_dir = config.margin_log.log_dir
    if config.method.name == "dpo" and config.margin_log.dpo_log_dir:
        log_dir = config.margin_log.dpo_log_dir
    trainer = PreferenceTrainer(
        model,
        None if own_reference or base_is_reference else config.reference_name,
        args,
        prepared.train,
        # A set that is never evaluated is not worth a reference pass.
        prepared.validation if args.eval_strategy != "no" else None,
        tokenizer,
        peft_config=peft_config,
        method=method,
        engine=config.read(EngineConfig),
        margin_log=replace(config.read(MarginLogConfig), log_dir=log_dir),
        max_nonfinite=config.method.max_nonfinite,
        disable_dropout=config.engine.disable_dropout,
        reference_fingerprint=on_first_rank(lambda: policy_fingerprint(reference)),
        reference_is_base=base_is_reference,
        run_config=config.to_dict(),
        resume_changed=section.resume_changed,
        reference_sync=config.read(ReferenceSync),
        keep_best=config.keep_best(),
        alarms=config.read(AlarmConfig),
        sampling=sampling,
        pair_sets={name: figures["first_row"] for name, figures in prepared.report.get("sets", {}).items()},
    )
    if is_first_rank():
        config.save(Path(section.save_dir) / files.CONFIG)
        if section.debug_samples:
            log_dpo_debug_samples(
                trainer, output_dir=Path(section.save_dir) / files.DEBUG_FOLDER, first_n=section.debug_samples
            )
    trainer.train(resume_from_checkpoint=trainer.find_checkpoint() if checkpoint is True else checkpoint)
    trainer.save_state()
    folder = section.save_dpo_dir or section.save_dir
    save_and_check(trainer, folder)
    logger.info("saved and checked: %s", folder)
    if section.push_to_hub:
        trainer.push_to_hub()
    return trainer


def _same_folder(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.resolve() == other.resolve()


if __name__ == "__main__":
    sys.exit(main())
