"""Supervised fine-tuning on completions only, by TRL's own `SFTTrainer`.

What is ours: checkpoints and stops (`ResumableTrainer`), the arguments that the loss needs, and the check that a
row's completion survives truncation.
"""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from dynamic_dpo.errors import DataError, ModelError
from dynamic_dpo.models.trained_weights import hold_trained_weights_in_float32
from dynamic_dpo.trainers.resumable_trainer import ResumableTrainer
from dynamic_dpo.utils.secrets import keep_tokens_unsaved


class ResumableSFTTrainer(ResumableTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with whole checkpoints, that ends in one when a signal asks for it."""


def build_sft_trainer(
    model: Any,
    args: Any,
    *,
    train_dataset: Any,
    eval_dataset: Any = None,
    tokenizer: Any,
    peft_config: Any = None,
) -> Any:
    """Return a TRL trainer whose loss is on completion tokens only.

    Args:
        model: A causal language model.
        args: A `trl.SFTConfig`; ``completion_only_loss`` is set on it.
        train_dataset: Rows with ``prompt`` and ``completion``, text or messages.
        eval_dataset: The same for evaluation, or ``None``.
        tokenizer: The tokenizer; a missing padding token becomes the end-of-sequence token.
        peft_config: A `peft` configuration, or ``None`` for full fine-tuning.

    Returns:
        The trainer, its data tokenised.

    Raises:
        DataError: If there is no row, or no row keeps a completion token within ``max_length``.
        ModelError: If the tokenizer has neither padding nor end-of-sequence token.
    """
    if len(train_dataset) == 0:
        raise DataError("no conversation to train on: every row was left out or the subset is empty")
    missing = {"prompt", "completion"} - set(train_dataset.column_names)
    if missing:
        raise DataError(
            f"rows for fine-tuning need prompt and completion, {', '.join(sorted(missing))} is missing; "
            f"found {', '.join(train_dataset.column_names)}"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError("the tokenizer has neither a padding nor an end-of-sequence token: set one")
        tokenizer.pad_token = tokenizer.eos_token
    args.completion_only_loss = True
    keep_tokens_unsaved(args)
    trainer = ResumableSFTTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    hold_trained_weights_in_float32(trainer.model, autocast=args.bf16 or args.fp16)
    _drop_rows_without_completion(trainer, args.max_length)
    return trainer


def _drop_rows_without_completion(trainer: Any, max_length: int | None) -> None:
    """Leave out rows whose prompt alone fills ``max_length``: their loss would be NaN."""
    if max_length is None:
        return
    for name in ("train_dataset", "eval_dataset"):
        dataset = getattr(trainer, name)
        if dataset is None or "completion_mask" not in dataset.column_names:
            continue
        kept = dataset.filter(lambda mask: any(mask[:max_length]), input_columns="completion_mask")
        if len(kept) == 0:
            raise DataError(
                f"no row of {name} keeps a completion token within max_length {max_length}: raise it"
            )
        setattr(trainer, name, kept)
