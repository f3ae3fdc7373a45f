"""The preference trainer: a `transformers.Trainer` that trains any `PreferenceMethod` on preference pairs.

A step's pairs arrive together in `training_step`; the engine cuts them into micro-batches, the method gives beta and
losses, and learns from each controller batch after its losses were formed. No method is known by name.

The methods stand in the order of a run: `prepare_run`, then for each step `training_step`, the check of its gradient,
its log entry, evaluation and checkpoint, and at last `finish_run`. `ResumableTrainer` says what happens at the end of
a step, and when a run is stopped and resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, set_seed

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.objective import ReferenceSync
from dynamic_dpo.methods.settings import MAX_NONFINITE
from dynamic_dpo.models.adapters import find_adapter
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.runs.model_card import TAGS, model_card
from dynamic_dpo.trainers.arguments import (
    Truncation,
    check_given,
    default_arguments,
    keep_best_of,
    model_options,
    pairs_per_update,
    refuse_early_stopping,
    refuse_loss_arguments,
    truncation_of,
    whole_step_arguments,
)
from dynamic_dpo.trainers.checkpoints.best_weights import BestWeights
from dynamic_dpo.trainers.checkpoints.resuming import RunState
from dynamic_dpo.trainers.evaluation import evaluate_pairs
from dynamic_dpo.trainers.guards import MarginGuard
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.ranks import check_ranks_agree, clear_rank_errors, reference_hash
from dynamic_dpo.trainers.recorder import RunRecorder
from dynamic_dpo.trainers.reference_pass import collate_pairs
from dynamic_dpo.trainers.reference_sync import MovingReference, sync_of
from dynamic_dpo.trainers.referenced_data import MAX_QUARANTINED, ReferencedData
from dynamic_dpo.trainers.resumable_trainer import ResumableTrainer
from dynamic_dpo.trainers.sharding import same_number_of_batches
from dynamic_dpo.trainers.step_shares import share_steps
from dynamic_dpo.trainers.watch.alarming import RunAlarms
from dynamic_dpo.trainers.watch.cost import RunCost
from dynamic_dpo.trainers.watch.sampling import RunSamples, Sampling
from dynamic_dpo.trainers.whole_step import WholeStep
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.process import prepare_process

logger = logging.getLogger("dynamic_dpo")


class PreferenceTrainer(ResumableTrainer):
    """Trains a policy on preference pairs.

    Arguments not listed are those of `transformers.Trainer`.

    Args:
        model: The policy: a causal language model, or a name (hub, folder, ``.gguf``, ``package:NAME``). With an
            adapter, or the folder of one, training goes on with that adapter.
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
        answer_tokens: Which tokens of an answer are scored: those that the ``assistant`` writes, or ``all`` behind
            the prompt, as TRL does.
        quarantine_max_share: Largest share of a data set's rows that may be unusable, in [0, 1].
        max_nonfinite: Margins that may be NaN or infinite in total before the run stops.
        disable_dropout: Whether dropout is switched off in the policy (a `trl.DPOConfig` overrides it).
        reference_fingerprint: Fingerprint of the reference's weights, where its files are known.
        reference_is_base: Whether the reference is the model under the adapter that the policy came with, and not
            the adapter as it was.
        run_config: The run's whole configuration, to be hashed into its record.
        reference_sync: How the reference follows the policy; by default as a `trl.DPOConfig` says, else not.
        alarms: What in the run's log raises an alarm, and what follows.
        pair_sets: Name of each set that the pairs are a mixture of, to its first row; their margins are logged apart.
        resume_changed: Whether a run may go on from a checkpoint that other settings or other data have made.
        keep_best: By which evaluations the weights are chosen that the run ends with, and when it ends; by default as
            ``load_best_model_at_end`` and an `EarlyStoppingCallback` say, else those of the last step.
        compute_metrics: More metrics of an evaluation, from a `transformers.EvalPrediction` of all its pairs:
            ``predictions`` [N, 2] are the rewards of chosen and rejected answers, ``label_ids`` [N] the places of the
            preferred ones, 0.
        sampling: For which prompts the policy writes samples while it is trained; ``None`` for none.

    Raises:
        ConfigError: If the arguments ask for something unsupported.
        DataError: If a data set holds no usable pair.
        ModelError: If a model cannot be loaded or scored.
    """

    train_dataset: Any
    eval_dataset: Any
    # Whether the loss was made from what the training arguments say of it; otherwise the method decides.
    reads_loss_arguments: ClassVar[bool] = False

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
        answer_tokens: str = "assistant",
        quarantine_max_share: float = MAX_QUARANTINED,
        max_nonfinite: int = MAX_NONFINITE,
        disable_dropout: bool = True,
        reference_fingerprint: str | None = None,
        reference_is_base: bool = False,
        run_config: dict[str, Any] | None = None,
        resume_changed: bool = False,
        reference_sync: ReferenceSync | None = None,
        alarms: AlarmConfig | None = None,
        pair_sets: Mapping[str, int] | None = None,
        keep_best: KeepBest | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        started = time.time()
        flush_denormal = prepare_process()
        check_given(train_dataset, processing_class)
        given = args if args is not None else default_arguments()
        if not self.reads_loss_arguments:
            refuse_loss_arguments(given)
        args, self.step_shape = whole_step_arguments(given)
        keep_best, callbacks = keep_best_of(given, callbacks, keep_best)
        self.pairs_per_update = pairs_per_update(method.scope, given)
        self.truncation = truncation or truncation_of(given)
        self.method = method
        if ref_model is not None and not method.needs.reference:
            logger.warning(
                "method %s needs no reference: ref_model is neither loaded nor scored", method.name
            )
            ref_model, reference_is_base = None, False
        self.reference_sync = reference_sync or sync_of(given)
        has_adapter = peft_config is not None or hasattr(model, "peft_config")
        has_adapter = has_adapter or (isinstance(model, str) and find_adapter(model) is not None)
        for problem in self.reference_sync.problems([method], has_adapter=has_adapter):
            raise ConfigError(f"reference_sync.{problem}")
        self.engine = engine or EngineConfig()
        if getattr(given, "activation_offloading", False):
            self.engine = replace(self.engine, offload_activations=True)
        self.resume_changed = resume_changed

        # What is trained, and on what. Here an adapter's weights are drawn, and those that a model's files lack.
        set_seed(args.seed)
        self.policy = PolicyAndReference(
            model,
            ref_model,
            processing_class,
            peft_config,
            disable_dropout=getattr(args, "disable_dropout", disable_dropout),
            gradient_checkpointing=bool(args.gradient_checkpointing),
            autocast=args.bf16 or args.fp16,
            fingerprint=reference_fingerprint,
            reference_is_base=reference_is_base,
            model_options=model_options(args, model),
        )
        self.data = ReferencedData(
            self.policy,
            self.truncation,
            getattr(args, "dataset_num_proc", None),
            answer_tokens,
            quarantine_max_share,
        )
        super().__init__(
            model=self.policy.model,
            args=args,
            data_collator=collate_pairs,
            train_dataset=self.data.prepare(train_dataset),
            eval_dataset=self.data.prepare(eval_dataset),
            processing_class=self.policy.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
        )
        self.base_name = (
            model if isinstance(model, str) else getattr(self.model.config, "_name_or_path", None)
        )
        self.dataset_name = getattr(getattr(train_dataset, "info", None), "dataset_name", None)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(TAGS))
        self.policy.prepare(
            self.accelerator,
            is_sharded=self.is_fsdp_enabled,
            keep_reference=method.needs.live_reference,
            move_reference=self.reference_sync.steps is not None,
            tail_weight=method.needs.tail_weight,
        )
        self.policy.build_scorer(self.engine, router_coefficient=getattr(args, "router_aux_loss_coef", None))

        # What a step does.
        self.guard = MarginGuard(max_nonfinite=max_nonfinite)
        self.whole_step = WholeStep(
            method=method,
            policy=self.policy,
            accelerator=self.accelerator,
            guard=self.guard,
            device_batch=self.step_shape.device_batch,
            is_sharded=self.is_fsdp_enabled,
            pair_sets=pair_sets,
        )

        # What the run writes, and what its checkpoints hold.
        self.best_weights = BestWeights(self, keep_best) if keep_best else None
        self.margin_logs = (
            margin_log.open(
                self.args.output_dir, rank=self.args.process_index, num_ranks=self.args.world_size
            )
            if margin_log
            else []
        )
        self.alarms = RunAlarms(alarms)
        self.cost = RunCost(self.policy, method.needs, self.accelerator)
        self.recorder = RunRecorder(
            self,
            self.whole_step,
            self.data,
            self.cost,
            margin_logs=self.margin_logs,
            pairs_per_update=self.pairs_per_update,
            started=started,
            flush_denormal=flush_denormal,
            config=run_config,
        )
        self.run_state = RunState(
            self,
            self.whole_step,
            margin_logs=self.margin_logs,
            pairs_per_step=self.step_shape.pairs * self.args.world_size,
            pairs_per_update=self.pairs_per_update,
        )
        self.add_callback(self.cost)
        self.add_callback(self.recorder)
        self.add_callback(self.alarms)
        self.add_callback(self.run_state)
        self.moving_reference = MovingReference(self.policy, self.reference_sync)
        if self.policy.moves_reference:
            self.add_callback(self.moving_reference)
        if sampling is not None:
            self.samples = RunSamples(self, sampling, reference=self.policy.reference_at_hand)
            self.add_callback(self.samples)

    @property
    def ref_model(self) -> Any:
        """The reference, where it is a model of its own and not let go yet; else ``None``."""
        return self.policy.reference_model

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the balancing loss of a mixture of experts is added to the training loss."""
        return self.policy.scorer.router is not None

    @property
    def num_updates(self) -> int:
        """Controller updates so far, those before a resume included."""
        return self.whole_step.num_updates

    @property
    def num_pairs_seen(self) -> int:
        """Pairs trained on so far over all ranks, those before a resume included."""
        return self.whole_step.num_pairs

    # ---- before the first step ----

    def prepare_run(self, checkpoint: str | None) -> None:
        """Compare the run with its checkpoint, score the reference where it is not known yet, and check the engine.

        Args:
            checkpoint: The checkpoint that the run will go on from, or ``None``.

        Raises:
            CheckpointError: If the checkpoint is another run's, or the reference's store cannot be written.
            ModelError: If the engine's self-check fails, or ranks disagree.
            NonFiniteError: If the reference gives a pair no number.
        """
        refuse_early_stopping(self.callback_handler.callbacks)
        if checkpoint is not None:
            self.run_state.check_resumable(checkpoint, allow_changes=self.resume_changed)
        elif self.best_weights is not None:
            self.best_weights.start_anew()
        with clear_rank_errors():
            self.ensure_reference()
            check_ranks_agree(
                self.accelerator,
                {"data": self.run_state.identity["data"], "reference": reference_hash(self.train_dataset)},
            )
        # From here on every data set has its reference, and all ranks have the same.
        if self.engine.self_check:
            self.policy.self_check(self.train_dataset, self.accelerator)
        if self.method.needs.reference and self.policy.starts_as_reference:
            # Equal models: the first margins are 0 but for rounding, or something is wrong.
            self.guard.start_arithmetic = self.policy.arithmetic_at_start(self.accelerator)
        for note in self.method.start_notes(self._num_updates_to_expect()):
            logger.info(note)

    def training_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy's ``forward`` also scores rows.

        Autocast and parallelism take hold of ``forward`` when they wrap the policy, and every pass has to go through
        them.
        """
        return self.policy.answering()

    def ensure_reference(self) -> None:
        """Give every data set its reference log-probabilities; done once, before the policy moves."""
        if self.data.reference_pass or not self.method.needs.reference or self.policy.moves_reference:
            return  # One that moves is scored beside the policy.
        self.data.open_reference(self.accelerator, show_progress=not self.args.disable_tqdm)
        self.train_dataset = self.data.attach(self.train_dataset, name="train")
        self.eval_dataset = self.data.attach(self.eval_dataset, name="eval")
        self.policy.release_reference()

    def _num_updates_to_expect(self) -> int:
        pairs = self.step_shape.pairs * self.args.world_size
        steps = self.args.max_steps
        if steps <= 0:
            steps = int(-(-len(self.train_dataset) // pairs) * self.args.num_train_epochs)
        return int(steps) * (self.step_shape.accumulation if self.method.scope == "micro" else 1)

    # ---- a step ----

    def get_train_dataloader(self) -> Any:
        """Return the loader of this rank's share of each optimizer step."""
        loader = super().get_train_dataloader()
        share_steps(
            loader,
            controller_batch=self.pairs_per_update // self.args.world_size,
            rank=self.args.process_index,
            num_ranks=self.args.world_size,
        )
        return loader

    def training_step(
        self, model: nn.Module, inputs: dict[str, PairBatch], num_items_in_batch: Any = None
    ) -> Tensor:
        """Form the gradient of one optimizer step and let the method learn from its controller batches.

        Args:
            model: The policy, wrapped as the accelerator wants it.
            inputs: ``{"pairs": this rank's pairs of the step}``.
            num_items_in_batch: Unused; losses are scaled by the step's pairs.

        Returns:
            What this rank adds to the step's mean loss, detached; the mean over ranks is that loss. Shape [].

        Raises:
            NonFiniteError: If too many margins or gradients were not finite.
            ModelError: If the check before the first step fails, or the ranks' controllers differ.
        """
        model.train()
        self._step_rows = list(inputs["pairs"].rows)
        self.cost.count(inputs["pairs"])
        loss = self.whole_step.run(
            model, inputs["pairs"], step=self.state.global_step, on_update=self.recorder.log_update
        )
        if self._get_learning_rate() > 0 and not self.guard.step_is_bad:
            self.guard.policy_moved = True
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # In fp16 the loss scaler looks for overflow itself, and expects some.
        if self.accelerator.scaler is None and not self.guard.check_gradient(
            float(norm), self._step_rows, step=self.state.global_step
        ):
            # Without gradients the optimizer does nothing; on every rank alike, since they share the norm.
            model.zero_grad()
        return norm

    def complete_entry(self, logs: dict[str, float], start_time: float | None) -> dict[str, float]:
        """Add beta, the metrics gathered since the last entry, and what its steps cost, to a training entry."""
        if "loss" in logs:
            step = self.whole_step
            metrics = step.metrics.drain(self.accelerator)
            logs = {**logs, "num_tokens": step.num_tokens, "beta": self.method.beta, **metrics}
            logs |= self.cost.drain(self.state)
            if start_time is not None:
                # The loop's own entry. It empties its sum by subtracting it from itself: one NaN would stay for the
                # rest of the run, and in the checkpoint that is saved next.
                self._tr_loss.zero_()
        return logs

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of an evaluation set, with reference log-probabilities.

        Args:
            eval_dataset: A data set, the name of one that the trainer was given, or ``None`` for that one.

        Raises:
            ModelError: If a new set is given after the policy has moved and its reference is gone.
        """
        if eval_dataset is self.eval_dataset:
            eval_dataset = None  # It is about to be replaced by one with the reference's part.
        self.ensure_reference()
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self.data.add_evaluation_set(eval_dataset, policy_moved=self.state.global_step > 0)
        return super().get_eval_dataloader(eval_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score every pair of ``dataloader`` as in training, without gradients; no state changes."""
        metrics, rewards = evaluate_pairs(
            self.model_wrapped if self.is_in_train else self.model,
            self.stopping.cuts(same_number_of_batches(self.accelerator, dataloader)),
            method=self.method,
            policy=self.policy,
            accelerator=self.accelerator,
            is_sharded=self.is_fsdp_enabled,
            prefix=metric_key_prefix,
            description=description,
            show_progress=not self.args.disable_tqdm,
        )
        predictions, labels = rewards.numpy(), np.zeros(len(rewards), np.int64)
        if self.compute_metrics is not None and len(rewards):
            own = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
            start = f"{metric_key_prefix}_"
            metrics |= {
                name if name.startswith(start) else start + name: value for name, value in own.items()
            }
        return EvalLoopOutput(
            predictions=predictions, label_ids=labels, metrics=metrics, num_samples=len(rewards)
        )

    # ---- what a preference run adds to a checkpoint, and to its end ----

    def saving_context(self) -> AbstractContextManager[None]:
        """Return the context in which the policy's configuration names the dropout that it came with."""
        return self.policy.saved_as_given()

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Keep the weights if they are the best so far."""
        if self.best_weights is not None:
            self.best_weights.observe(metrics, step=self.state.global_step, beta=self.method.beta)

    def has_finished(self) -> bool:
        """Return whether the run has waited long enough for a better evaluation."""
        return self.best_weights is not None and self.best_weights.best.is_out_of_patience

    def write_into_checkpoint(self, folder: Path) -> None:
        """Write the run's own state beside the Hugging Face trainer's."""
        self.run_state.save(folder)
        if self.best_weights is not None:
            self.best_weights.write_into(folder)
        if self.policy.moves_reference:
            self.moving_reference.save(folder, self.accelerator)

    def read_from_checkpoint(self, folder: Path) -> None:
        """Put the run's own state back."""
        self.run_state.restore(folder)
        if self.policy.moves_reference:
            self.moving_reference.load(folder)

    def reason_to_stop(self) -> str | None:
        """Return why the method, or an alarm, wants the run to end, if one does."""
        return self.method.stop_reason or self.alarms.stop_reason

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        dataset_name: str | None = None,
    ) -> None:
        """Write ``README.md`` into the run's folder: which method, on what data, at what beta.

        The arguments are those of `transformers.Trainer`, and TRL's ``dataset_name``; what a card of a preference run
        has no place for is refused.

        Raises:
            ConfigError: If ``language``, ``license``, ``tasks``, ``dataset_tags`` or ``dataset_args`` is given.
        """
        others = {"language": language, "license": license, "tasks": tasks, "dataset_tags": dataset_tags}
        for name, value in (others | {"dataset_args": dataset_args}).items():
            if value is not None:
                raise ConfigError(f"the model card has no {name}: write it into README.md afterwards")
        if not self.is_world_process_zero():
            return
        first = dataset if isinstance(dataset, str) or dataset is None else ", ".join(dataset)
        text = model_card(
            model_name or Path(self.args.output_dir).name,
            method=self.method.name,
            beta=self.method.beta,
            base=finetuned_from or self.base_name,
            dataset=dataset_name or first or self.dataset_name,
            num_pairs=len(self.train_dataset) if self.train_dataset is not None else 0,
            tags=[tags] if isinstance(tags, str) else tags or [],
        )
        write_text(Path(self.args.output_dir) / "README.md", text)

    def finish_run(self) -> None:
        """Leave the run's record."""
        self.recorder.write_summary()

    def settle_model(self) -> None:
        """Give the model the weights of the best evaluation, where they are kept."""
        if self.best_weights is not None:
            self.best_weights.put_back()
