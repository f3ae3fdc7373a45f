"""Makes a Hugging Face trainer's checkpoints whole or absent, and resumes from whole ones only.

The parent writes where it is told to: into a staging folder. Listing, renaming and rotation come after it, here, and
every rank learns whether they succeeded. Which trainer it is and what else a checkpoint holds is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerState

from dynamic_dpo.errors import CheckpointError, DynamicDPOError
from dynamic_dpo.runs.files import CHECKPOINT_PREFIX, TRAINER_STATE
from dynamic_dpo.trainers.checkpoints.folders import (
    STAGING,
    check_complete,
    clean,
    commit,
    newest_complete,
    rotate,
    set_aside_newer,
    stage,
)
from dynamic_dpo.utils.files import write_refused

logger = logging.getLogger("dynamic_dpo")

# What reading a file raises that is damaged, malicious or another model's.
_NO_DATA = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
)


class WholeCheckpoints:
    """Mixed into a `transformers.Trainer`, before it in the order of bases."""

    args: Any
    accelerator: Any
    control: Any
    state: Any
    _staging: Path | None = None
    _push_later = False
    _save_at_epoch_end = False
    _visited_step: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The parent makes the run's folder.
        with _one_refusal(Path(getattr(kwargs.get("args"), "output_dir", None) or ".")):
            super().__init__(*args, **kwargs)

    # ---- resuming ----

    def find_checkpoint(self) -> str | None:
        """Return the newest whole checkpoint of the output folder, ``None`` if none was ever made.

        Collective over ranks: the main process looks. Newer ones that are damaged are named in a warning.

        Raises:
            CheckpointError: If there are checkpoints and none is whole.
        """

        def look() -> str | None:
            clean(self.args.output_dir)
            newest = newest_complete(self.args.output_dir)
            return None if newest is None else str(newest)

        found: str | None = self._on_main_process(look)
        return found

    def checked_checkpoint(self, wanted: str | bool | None) -> str | None:
        """Return the folder of the checkpoint to resume from, every byte of it verified. Collective over ranks.

        Args:
            wanted: What `transformers.Trainer.train` takes as ``resume_from_checkpoint``.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        if not wanted:
            return None
        if wanted is True:
            found = self.find_checkpoint()
            if found is None:
                raise CheckpointError(f"{self.args.output_dir} holds no checkpoint to resume from")
            return _with_readable_state(found)
        self._on_main_process(lambda: check_complete(str(wanted)))
        return _with_readable_state(str(wanted))

    def begin_from(self, checkpoint: str | None) -> None:
        """Make the output folder fit a run that goes on from ``checkpoint``, or starts. Collective over ranks."""

        def tidy() -> None:
            clean(self.args.output_dir)
            if checkpoint and Path(checkpoint).resolve().parent == Path(self.args.output_dir).resolve():
                set_aside_newer(checkpoint)

        self._on_main_process(tidy)

    # Every file of a checkpoint is read as tensors and plain values alone (`weights_only`); what is anything else, or
    # another run's, is refused here in one sentence.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _only_data(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The parent looks after a step whether it was the last: a finished run that is resumed would make one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    # ---- saving ----

    def write_into_checkpoint(self, folder: Path) -> None:
        """Add files to a checkpoint before it is committed. Every rank calls it; by default nothing is added."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)  # type: ignore[misc]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging:
            self._push_later = True
        else:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        best = self.state.best_model_checkpoint
        if self.state.best_global_step == self.state.global_step:
            best = str(run / name)
        self._on_main_process(lambda: _guarded(lambda: stage(run), run))
        self._staging = run / STAGING
        refusal: BaseException | None = None
        try:
            with _one_refusal(run):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
                self.write_into_checkpoint(self._staging / name)
        except DynamicDPOError as error:
            refusal = error
        finally:
            self._staging = None

        def finish() -> None:
            # The parent wrote the staging folder's name into its state.
            self.state.best_model_checkpoint = best
            self.state.save_to_json(str(run / STAGING / name / TRAINER_STATE))
            rotate(commit(run, name), keep=self.args.save_total_limit, best=best)

        try:
            # All ranks have written their part once they have said how it went.
            self._all_succeeded(refusal, run)
            self._on_main_process(lambda: _guarded(finish, run))
        except CheckpointError:
            if self.accelerator.is_main_process:
                clean(run)  # Its space may be what is missing.
            raise
        self.state.best_model_checkpoint = best
        if self._push_later:
            self._push_later = False
            self._push_from_checkpoint(str(run / name))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        step, epoch = self.state.global_step, self.state.epoch or 0.0
        at_epoch_end, self._visited_step = self._visited_step == step, step
        # The parent comes by twice at an epoch's end: after the step, and after the epoch. What the second visit
        # logs and evaluates must be in the checkpoint, or a run resumed from it would never log it.
        if at_epoch_end:
            control.should_save |= self._save_at_epoch_end
            self._save_at_epoch_end = False
        elif control.should_save and epoch == int(epoch):
            control.should_save, self._save_at_epoch_end = False, True
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    # ---- ranks ----

    def _on_main_process(self, function: Any) -> Any:
        """Run ``function`` on the main process; every rank returns its result or raises its error."""
        if self.accelerator.num_processes == 1:
            return function()
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                box[0] = function()
            except DynamicDPOError as error:
                box[1] = error
        broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def _all_succeeded(self, error: BaseException | None, run: Path) -> None:
        if self.accelerator.num_processes > 1:
            failed = torch.tensor([error is not None], dtype=torch.int64, device=self.accelerator.device)
            failures = self.accelerator.gather(failed).tolist()
            if error is None and any(failures):
                error = CheckpointError(
                    f"rank {failures.index(1)} could not write its part of the checkpoint in {run}: see its output"
                )
        if error is not None:
            raise error


def _with_readable_state(checkpoint: str) -> str:
    """Return the checkpoint once its trainer's state was read: the parent reads it with no care for what it holds."""
    with _only_data(checkpoint):
        if (path := Path(checkpoint) / TRAINER_STATE).is_file():
            TrainerState.load_from_json(str(path))
    return checkpoint


@contextmanager
def _only_data(checkpoint: str | None) -> Iterator[None]:
    """Turn what a file of a checkpoint that is none of ours raises into one clear error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _NO_DATA as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise CheckpointError(
            f"the checkpoint {checkpoint} cannot be loaded: {what}. A file of it holds something else than this "
            "run's tensors and numbers; resume from another checkpoint"
        ) from error


@contextmanager
def _one_refusal(run: Path) -> Iterator[None]:
    """Turn a disk's refusal, whoever reports it, into one clear error."""
    try:
        yield
    except DynamicDPOError:
        raise
    except Exception as error:
        advice = write_refused(error)
        if advice is None:
            raise
        raise CheckpointError(
            f"the run's folder {run} cannot be written to: {error}. Earlier checkpoints are as they were; {advice}, "
            "then resume"
        ) from error


def _guarded(function: Any, run: Path) -> None:
    with _one_refusal(run):
        function()
