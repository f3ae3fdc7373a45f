"""A Hugging Face trainer that may be stopped at any moment, and that goes on as if it had never been stopped.

The base of `PreferenceTrainer` and of fine-tuning. It overrides what the Hugging Face trainer does at the end of a
step, at saving, at loading and around a run, each in one place; what a trainer built on it adds has names of its own.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from dynamic_dpo.errors import RunStopped
from dynamic_dpo.trainers.checkpoints.log_state import LogState
from dynamic_dpo.trainers.checkpoints.saved import gathered_weights, write_settings
from dynamic_dpo.trainers.checkpoints.stopping import EvaluationCut, StopRequest
from dynamic_dpo.trainers.checkpoints.whole import WholeCheckpoints, clear_disk_errors, clear_reading_errors
from dynamic_dpo.trainers.ranks import clear_rank_errors, on_main_process
from dynamic_dpo.trainers.sharding import keep_float32, shard
from dynamic_dpo.trainers.watch.progress import ProgressLine
from dynamic_dpo.trainers.watch.sampling import RunSamples
from dynamic_dpo.utils.signals import Interrupted, deferred, raise_if_requested

logger = logging.getLogger("dynamic_dpo")


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` with whole checkpoints, that ends in one when a signal asks for it.

    Before another trainer of that family in the order of bases it does the same for that one.

    Attributes:
        checkpoints: The run's checkpoints.
        stopping: Whether a signal has asked the run to stop.
        log_state: What the next log entries are made of.
        samples: What the policy writes while it is trained; ``None`` where it writes nothing.
    """

    samples: RunSamples | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.checkpoints = WholeCheckpoints(self)
        self.stopping = StopRequest(self)
        self._save_after_epoch = self._ends_again = False
        self._step_that_ended: int | None = None
        self._push_after_commit = False
        # The run's folder is made in there.
        with clear_disk_errors(Path(getattr(kwargs.get("args"), "output_dir", None) or ".")):
            super().__init__(*args, **kwargs)
        ProgressLine.instead_of_the_usual(self)
        self.log_state = LogState(self)
        self.add_callback(self.log_state)

    # ---- for the trainers built on it: nothing is done here ----

    def prepare_run(self, checkpoint: str | None) -> None:
        """Do what comes before a run, while a signal may still end it at once. Every rank calls it.

        Args:
            checkpoint: The checkpoint to go on from, verified and not loaded yet; ``None`` for a new run.
        """

    def training_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the loop runs; it begins before the accelerator wraps the model."""
        return nullcontext()

    def saving_context(self) -> AbstractContextManager[None]:
        """Return the context in which the model and its configuration are written."""
        return nullcontext()

    def reason_to_stop(self) -> str | None:
        """Return why the run should save and end after the present step, ``None`` if it should go on."""
        return None

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Take an evaluation that the run was to make into account. Every rank calls it."""

    def has_finished(self) -> bool:
        """Return whether the run has come to a good end before its last step."""
        return False

    def write_into_checkpoint(self, folder: Path) -> None:
        """Add files to a checkpoint before it is committed. Every rank calls it."""

    def read_from_checkpoint(self, folder: Path) -> None:
        """Read them again, once the model is loaded and before the first step. Every rank calls it."""

    def complete_entry(self, logs: dict[str, float], start_time: float | None) -> dict[str, float]:
        """Return a log entry with what is to be added to it; the loop's own entries come with its start time."""
        return logs

    def finish_run(self) -> None:
        """Do what comes after training, however it ended, unless an error ended it. Every rank calls it."""

    def settle_model(self) -> None:
        """Give the model the weights that the run is to end with, once it is at its end. Every rank calls it."""

    # ---- models that are spread over the ranks ----

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer; of a sharded model, one that is made over its shards.

        accelerate would shard the model after it and find the parameters again by their addresses, which those have
        none that another rank has loaded.
        """
        if self.is_fsdp_enabled:
            shard(self.accelerator, self.model if model is None else model)
        return super().create_optimizer(model)

    # ---- a run ----

    def find_checkpoint(self) -> str | None:
        """Return the newest whole checkpoint of the output folder, ``None`` if none was ever made.

        Collective over ranks. Newer ones that are damaged are named in a warning.

        Raises:
            CheckpointError: If there are checkpoints and none is whole.
        """
        return self.checkpoints.newest()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or ``True`` for the newest in the output folder.
            **kwargs: Passed on to `transformers.Trainer.train`.

        Returns:
            The trainer's output.

        Raises:
            CheckpointError: If the checkpoint is damaged or another run's, or a file cannot be written.
            RunStopped: If the run had a reason of its own to end, once a checkpoint is saved.
            Interrupted: If a signal asked to stop, once a checkpoint is saved; see `dynamic_dpo.utils.signals`.
        """
        # Before all preparation: a checkpoint that cannot be used should not cost hours first.
        checkpoint = self.checkpoints.verified(resume_from_checkpoint)
        self.stopping.forget()
        self.prepare_run(checkpoint)
        self.checkpoints.begin_from(checkpoint)
        raise_if_requested()
        # A step is not cut in the middle: the signal is noted, and the step's end looks for it.
        writing = self.samples.opened() if self.samples is not None else nullcontext()
        with deferred(), clear_rank_errors(), self.training_context(), writing:
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self.finish_run()
        self.raise_if_stopped()
        with clear_rank_errors():
            self.settle_model()
        return output._replace(training_loss=output.metrics["train_loss"])

    def raise_if_stopped(self) -> None:
        """Raise an error that says why training has ended before its time, if it has. Collective over ranks.

        Raises:
            RunStopped: If the run had a reason of its own.
            Interrupted: If a signal asked for it.
        """
        if reason := self.reason_to_stop():
            raise RunStopped(
                f"{reason}. A checkpoint of step {self.state.global_step} is saved; resuming goes on from it"
            )
        # A signal that came in the middle of the last checkpoint counts too. One after the last step, where no
        # checkpoint holds that step, does not: what was trained would be lost.
        if self.checkpoints.saved_step == self.state.global_step:
            self.stopping.agreed()
        if self.stopping.signal is not None:
            raise Interrupted(self.stopping.signal)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The loop asks after a step whether it was the last: a finished run that is resumed would make one more.
        if self.state.global_step >= self.state.max_steps or self.has_finished():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry, with what the trainer built on this one adds."""
        if "train_loss" in logs:
            logs["train_loss"] = self.log_state.mean_loss()
        super().log(self.complete_entry(logs, start_time), start_time)

    def log_beside(self, entry: dict[str, float]) -> None:
        """Log an entry that is neither training's nor an evaluation's; what is gathered for those stays."""
        is_due = self.control.should_log
        Trainer.log(self, entry)
        # A training entry that is due at this step is still to come.
        self.control.should_log = is_due

    # ---- the end of a step ----

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """End a step. The loop calls this after every step, and once more at the end of every epoch.

        The order, read from top to bottom, is all that happens then.
        """
        # 1. Has the run a reason of its own to end? Then it saves and ends here; it logs and evaluates as ever.
        if reason := self.reason_to_stop():
            # Said once: a step that ends an epoch ends twice.
            if not self.control.should_training_stop:
                logger.warning("the run saves and ends here: %s", reason)
            self.control.should_save = self.control.should_training_stop = True

        # 2. The loop has ended inside an epoch, by a signal or because the run had finished, and it calls as if the
        #    epoch had come to its end. It has not: what comes at an epoch's end belongs to the resumed run, if any.
        epoch = self.state.epoch or 0.0
        inside_epoch = epoch != int(epoch) and self.state.global_step < self.state.max_steps
        if (self.stopping.signal is not None or self.has_finished()) and inside_epoch:
            return

        # 3. Has a signal asked any rank to stop? Then all save and stop after this step, and evaluate no more.
        if self.stopping.agreed():
            self.stopping.save_and_stop()

        # 4. Log, evaluate, save, in this order.
        try:
            self._log_evaluate_save(*args, **kwargs)
        except EvaluationCut:
            # 5. The signal came while evaluating. The entry is logged; what is left is to save and stop. At an
            #    epoch's end this saves at once, and the epoch's own entry leads to a checkpoint that holds it.
            self.stopping.save_and_stop()
            self._log_evaluate_save(*args, **kwargs)

    def _log_evaluate_save(self, *args: Any, **kwargs: Any) -> None:
        # The last step of an epoch ends twice: with the step, and with the epoch. What the second time logs and
        # evaluates must be in the checkpoint, or a run resumed from it would never log it: saving waits for it.
        step, epoch = self.state.global_step, self.state.epoch or 0.0
        is_second_time, self._step_that_ended = self._step_that_ended == step, step
        self._ends_again = not is_second_time and epoch == int(epoch)
        if is_second_time:
            self.control.should_save |= self._save_after_epoch
            self._save_after_epoch = False
        elif self.control.should_save and self._ends_again:
            self.control.should_save, self._save_after_epoch = False, True
        if self.samples is not None and self.stopping.signal is None and self.samples.is_due(self.state):
            self.samples.write()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Make an evaluation that the run was to make; one that ends the run, well, is followed by a checkpoint."""
        has_begun = self.state.global_step > self._initial_global_step
        if skip_scheduler and self.state.global_step > 0:
            return {}  # Of the start: the run that is resumed has made it.
        try:
            metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationCut:
            if has_begun:
                raise
            # Nothing was trained since the checkpoint, or at all: there is nothing to save.
            raise Interrupted(self.stopping.signal or 0) from None
        self.after_evaluation(metrics)
        if self.samples is not None and self.samples.comes_with_evaluations:
            self.samples.write()
        if self.has_finished():
            self.control.should_training_stop = True
            if has_begun and self.args.save_strategy != SaveStrategy.NO:
                self._save_after_epoch = self._ends_again
                self.control.should_save = not self._ends_again
        return metrics

    # ---- saving ----

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, as the Hugging Face trainer does when it is built."""
        # It refuses checkpoints of the model alone where the model is sharded: it gathers none. `save_model` does.
        alone = self.args.save_only_model and not self.args.load_best_model_at_end
        self.args.save_only_model &= not alone
        super().create_accelerator_and_postprocess()
        self.args.save_only_model |= alone
        keep_float32(self.accelerator)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer as `from_pretrained` reads them, whole also where FSDP2 shards the model.

        A checkpoint of shards gets everything but the weights, which are in its shards; with ``save_only_model`` it
        has none, and is a whole model. Collective over ranks.

        Args:
            output_dir: Where to; by default the output folder.
            _internal_call: Whether the trainer itself calls, which then pushes nothing to the hub.

        Raises:
            CheckpointError: If a disk refuses it.
        """
        folder = Path(output_dir or self.args.output_dir)
        if not self.is_fsdp_enabled:
            with self.saving_context():
                super().save_model(str(folder), _internal_call)
            return
        model = self.accelerator.unwrap_model(self.model)
        is_checkpoint = self.checkpoints.staging is not None and not self.args.save_only_model
        is_sharded = is_checkpoint and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        weights = {} if is_sharded else gathered_weights(model)

        def write() -> None:
            with clear_disk_errors(folder), self.saving_context():
                if is_sharded:
                    write_settings(folder, model, self.processing_class)
                else:
                    self._save(str(folder), state_dict=weights)

        on_main_process(self.accelerator, write)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        with self.checkpoints.staged(run) as folder:
            super()._save_checkpoint(model, trial)
            self.write_into_checkpoint(folder)
        # Only what is committed may be pushed.
        if self._push_after_commit:
            self._push_after_commit = False
            self._push_from_checkpoint(str(run / folder.name))

    def _get_output_dir(self, trial: Any) -> str:
        staging = self.checkpoints.staging
        return str(staging) if staging else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.checkpoints.staging:
            self._push_after_commit = True
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    # ---- loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with clear_reading_errors(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.read_from_checkpoint(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with clear_reading_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with clear_reading_errors(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with clear_reading_errors(checkpoint):
            super()._load_rng_state(checkpoint)
