"""The preference trainer: a `transformers.Trainer` that trains any `PreferenceMethod` on preference pairs.

With the modules it mixes in it is all that knows the Hugging Face trainer's hooks, and it knows no method by name. A
step's pairs arrive together in `training_step`; the engine cuts them into micro-batches, the method gives beta and
losses, and learns from each controller batch after its losses were formed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.settings import MAX_NONFINITE
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers.arguments import (
    Truncation,
    default_arguments,
    pairs_per_update,
    truncation_of,
    whole_step_arguments,
)
from dynamic_dpo.trainers.checkpoints.resuming import RestoreLogSums, ResumableRun
from dynamic_dpo.trainers.guards import MarginGuard
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.ranks import check_ranks_agree, clear_rank_errors, reference_hash
from dynamic_dpo.trainers.recorded_run import RecordedRun, StepClock
from dynamic_dpo.trainers.reference_pass import collate_pairs
from dynamic_dpo.trainers.referenced_data import ReferencedData
from dynamic_dpo.trainers.whole_step import WholeStep
from dynamic_dpo.utils.process import prepare_process
from dynamic_dpo.utils.signals import deferred, raise_if_requested

logger = logging.getLogger("dynamic_dpo")


class PreferenceTrainer(ReferencedData, RecordedRun, ResumableRun, Trainer):  # type: ignore[misc]
    """Trains a policy on preference pairs.

    Arguments not listed are those of `transformers.Trainer`.

    Args:
        model: The policy: a causal language model, or a name (hub, folder, ``.gguf``, ``package:NAME``).
        ref_model: The reference; ``None`` is the policy as given (with ``peft_config``: the adapter off).
        args: `transformers.TrainingArguments` or `trl.DPOConfig`. ``per_device_train_batch_size`` ×
            ``gradient_accumulation_steps`` × ranks pairs make one optimizer step.
        train_dataset: Pairs to train on: tokenised, or in any TRL preference format.
        eval_dataset: Pairs to evaluate on, or a dict of such data sets.
        processing_class: The tokenizer; by default the model's own.
        callbacks: Callbacks of the Hugging Face trainer.
        optimizers: Optimizer and scheduler, as the Hugging Face trainer takes them.
        peft_config: A `peft` configuration: train adapters only.
        method: The preference method.
        engine: Layout and memory.
        margin_log: Where and how margins are logged; ``None`` logs none.
        truncation: How pairs are cut; by default what a `trl.DPOConfig` says, else 512 tokens.
        max_nonfinite: Margins that may be NaN or infinite in total before the run stops.
        disable_dropout: Whether dropout is switched off in the policy (a `trl.DPOConfig` overrides it).
        reference_fingerprint: Fingerprint of the reference's weights, where its files are known.
        run_config: The run's whole configuration, to be hashed into its record.
        resume_changed: Whether a run may go on from a checkpoint that other settings or other data have made.

    Raises:
        ConfigError: If the arguments ask for something unsupported.
        DataError: If a data set holds no usable pair.
        ModelError: If a model cannot be loaded or scored.
    """

    def __init__(
        self,
        model: nn.Module | str,
        ref_model: nn.Module | str | None = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        *,
        method: PreferenceMethod,
        engine: EngineConfig | None = None,
        margin_log: MarginLogConfig | None = None,
        truncation: Truncation | None = None,
        max_nonfinite: int = MAX_NONFINITE,
        disable_dropout: bool = True,
        reference_fingerprint: str | None = None,
        run_config: dict[str, Any] | None = None,
        resume_changed: bool = False,
    ) -> None:
        self.flush_denormal = prepare_process()
        self._wall_start = time.time()
        args = args if args is not None else default_arguments()
        self.pairs_per_update = pairs_per_update(method.scope, args)
        self.truncation = truncation or truncation_of(args)
        args, self.step_shape = whole_step_arguments(args)
        self.method = method
        if ref_model is not None and not method.needs.reference:
            logger.warning(
                "method %s needs no reference: ref_model is neither loaded nor scored", method.name
            )
            ref_model = None
        self.engine = engine or EngineConfig()
        self.policy = PolicyAndReference(
            model,
            ref_model,
            processing_class,
            peft_config,
            disable_dropout=getattr(args, "disable_dropout", disable_dropout),
            gradient_checkpointing=bool(args.gradient_checkpointing),
            fingerprint=reference_fingerprint,
        )
        self._num_proc = getattr(args, "dataset_num_proc", None)
        self.step_clock = StepClock()
        super().__init__(
            model=self.policy.model,
            args=args,
            data_collator=collate_pairs,
            train_dataset=self._prepare(train_dataset),
            eval_dataset=self._prepare(eval_dataset),
            processing_class=self.policy.tokenizer,
            callbacks=[*(callbacks or ()), self.step_clock, RestoreLogSums(self)],
            optimizers=optimizers,
        )
        if method.needs.live_reference:
            self.policy.keep_reference()
        self.policy.build_scorer(self.engine)
        self.guard = MarginGuard(max_nonfinite=max_nonfinite)
        self.margin_logs = (
            margin_log.open(
                self.args.output_dir, rank=self.args.process_index, num_ranks=self.args.world_size
            )
            if margin_log
            else []
        )
        self.whole_step = WholeStep(
            method=method,
            policy=self.policy,
            accelerator=self.accelerator,
            guard=self.guard,
            device_batch=self.step_shape.device_batch,
            passes_in_step=self.is_fsdp_enabled,
        )
        self.run_config = run_config
        self.resume_changed = resume_changed

    # ---- before the first step ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Score the reference where it is not known yet, check the engine, then train and leave a record.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or ``True`` for the newest in the output folder.
            **kwargs: Passed on to `transformers.Trainer.train`.

        Returns:
            The trainer's output.

        Raises:
            CheckpointError: If the checkpoint is damaged or another run's, or a file cannot be written.
            ModelError: If the self-check or the check before the first step fails, or ranks disagree.
            NonFiniteError: If too many margins or gradients were not finite.
            Interrupted: If a signal asked to stop, once a checkpoint is saved; see `dynamic_dpo.utils.signals`.
        """
        # Before the reference pass: a checkpoint that cannot be used should not cost hours first.
        checkpoint = self.checked_checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            self.check_resumable(checkpoint, allow_changes=self.resume_changed)
        with clear_rank_errors():
            self.ensure_reference()
            check_ranks_agree(
                self.accelerator,
                {"data": self.identity["data"], "reference": reference_hash(self.train_dataset)},
            )
        if self.engine.self_check:
            self.policy.self_check(self.train_dataset, self.accelerator)
        if self.method.needs.reference and self.policy.starts_as_reference:
            half = self.accelerator.mixed_precision != "no" or self.policy.scorer.dtype.itemsize < 4
            self.guard.start_tolerance = 1.0 if half else 0.01
        for note in self.method.start_notes(self._num_updates_to_expect()):
            logger.info(note)
        self.begin_from(checkpoint)
        if checkpoint is None:
            for log in self.margin_logs:
                if moved := log.start_anew():
                    logger.warning("an earlier run's margin log was moved to %s", moved)
        raise_if_requested()
        # A step is not cut in the middle: the signal is noted, and the step's end looks at it.
        with deferred(), clear_rank_errors():
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._write_summary()
        self.raise_if_stopped()
        return output

    def _num_updates_to_expect(self) -> int:
        pairs = self.step_shape.pairs * self.args.world_size
        steps = self.args.max_steps
        if steps <= 0:
            steps = int(-(-len(self.train_dataset) // pairs) * self.args.num_train_epochs)
        return int(steps) * (self.step_shape.accumulation if self.method.scope == "micro" else 1)

    # ---- a step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, PairBatch], num_items_in_batch: Any = None
    ) -> Tensor:
        """Form the gradient of one optimizer step and let the method learn from its controller batches.

        Args:
            model: The policy, wrapped as the accelerator wants it.
            inputs: ``{"pairs": this rank's pairs of the step}``.
            num_items_in_batch: Unused; losses are scaled by the step's pairs.

        Returns:
            The mean loss of this rank's pairs, detached.
        """
        model.train()
        self._step_rows = list(inputs["pairs"].rows)
        loss = self.whole_step.run(
            model, inputs["pairs"], step=self.state.global_step, on_update=self._log_margins
        )
        if self._get_learning_rate() > 0 and not self.guard.step_is_bad:
            self.guard.policy_moved = True
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # In fp16 the loss scaler looks for overflow itself, and expects some.
        if self.accelerator.scaler is None and not self.guard.look_at_gradient(
            float(norm), self._step_rows, step=self.state.global_step
        ):
            # Without gradients the optimizer does nothing; on every rank alike, since they share the norm.
            model.zero_grad()
        return norm
