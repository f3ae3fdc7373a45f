"""Supervised fine-tuning on completions only, by TRL's own `SFTTrainer`.

What is ours: checkpoints and stops (`ResumableTrainer`), the arguments that the loss needs, and the check that a
row's completion survives truncation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import SFTTrainer

from dynamic_dpo.errors import DataError, ModelError
from dynamic_dpo.models.trained_weights import hold_trained_weights_in_float32
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.runs.files import LOG_STATE
from dynamic_dpo.trainers.arguments import check_parallelism
from dynamic_dpo.trainers.checkpoints.log_state import json_number
from dynamic_dpo.trainers.checkpoints.whole import clear_reading_errors
from dynamic_dpo.trainers.resumable_trainer import ResumableTrainer
from dynamic_dpo.trainers.watch.alarming import RunAlarms
from dynamic_dpo.trainers.watch.row_cost import COUNTED, RowCost
from dynamic_dpo.trainers.watch.sampling import RunSamples, Sampling
from dynamic_dpo.utils.files import write_json
from dynamic_dpo.utils.secrets import keep_tokens_unsaved


class ResumableSFTTrainer(ResumableTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with whole checkpoints, that ends in one when a signal or an alarm asks for it."""

    def __init__(self, *args: Any, alarms: AlarmConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alarms = RunAlarms(alarms)
        self.cost = RowCost(self.model, self.accelerator)
        self.add_callback(self.cost)
        self.add_callback(self.alarms)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, and count what a step's batch costs."""
        if model.training:
            self.cost.count({name: value for name, value in inputs.items() if name in COUNTED})
        return super().compute_loss(model, inputs, *args, **kwargs)

    def complete_entry(self, logs: dict[str, float], start_time: float | None) -> dict[str, float]:
        """Add to a training entry what its steps cost."""
        return {**logs, **self.cost.drain(self.state)} if "loss" in logs else logs

    def reason_to_stop(self) -> str | None:
        """Return why an alarm wants the run to end, if one does."""
        return self.alarms.stop_reason

    def write_into_checkpoint(self, folder: Path) -> None:
        """Write what the next log entries are made of: losses, and the metrics that TRL gathers from all ranks."""
        state = self.log_state.gather()
        if self.args.should_save:
            metrics = {
                name: [json_number(value) for value in values]
                for name, values in self._metrics["train"].items()
            }
            write_json(
                folder / LOG_STATE, {**state, "metrics": metrics, "num_tokens": self._total_train_tokens}
            )

    def read_from_checkpoint(self, folder: Path) -> None:
        """Take it up again; a checkpoint of an earlier version has none of it."""
        path = folder / LOG_STATE
        if not path.is_file():
            return
        with clear_reading_errors(str(folder)):
            state = json.loads(path.read_text(encoding="utf-8"))
            self.log_state.restore(state)
            self._total_train_tokens = int(state["num_tokens"])
            self._metrics["train"].clear()
            for name, values in state["metrics"].items():
                self._metrics["train"][name] = [float(value) for value in values]


def build_sft_trainer(
    model: Any,
    args: Any,
    *,
    train_dataset: Any,
    eval_dataset: Any = None,
    tokenizer: Any,
    peft_config: Any = None,
    sampling: Sampling | None = None,
    alarms: AlarmConfig | None = None,
) -> Any:
    """Return a TRL trainer whose loss is on completion tokens only.

    Args:
        model: A causal language model.
        args: A `trl.SFTConfig`; ``completion_only_loss`` is set on it.
        train_dataset: Rows with ``prompt`` and ``completion``, text or messages; or with ``input_ids`` and
            ``completion_mask``, token ids and which of them are the completion's.
        eval_dataset: The same for evaluation, or ``None``.
        tokenizer: The tokenizer; a missing padding token becomes the end-of-sequence token.
        peft_config: A `peft` configuration, or ``None`` for full fine-tuning.
        sampling: For which prompts the model writes samples while it is trained; ``None`` for none.
        alarms: What in the run's log raises an alarm, and what follows; what a fine-tuning does not log raises none.

    Returns:
        The trainer, its data tokenised.

    Raises:
        ConfigError: If the run is parallel in a way that is not supported.
        DataError: If there is no row, or no row keeps a completion token within ``max_length``.
        ModelError: If the tokenizer has neither padding nor end-of-sequence token.
    """
    check_parallelism(args)
    if len(train_dataset) == 0:
        raise DataError("no conversation to train on: every row was left out or the subset is empty")
    names = set(train_dataset.column_names)
    missing = {"prompt", "completion"} - names
    if missing and not {"input_ids", "completion_mask"} <= names:
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
    set_seed(args.seed)  # Before an adapter's weights are drawn.
    trainer = ResumableSFTTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        alarms=alarms,
    )
    hold_trained_weights_in_float32(trainer.model, autocast=args.bf16 or args.fp16)
    _drop_rows_without_completion(trainer, args.max_length)
    if sampling is not None:
        trainer.samples = RunSamples(trainer, sampling)
        trainer.add_callback(trainer.samples)
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
