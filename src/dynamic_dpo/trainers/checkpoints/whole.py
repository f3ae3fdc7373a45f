"""The checkpoints of a run: written whole or not at all, and resumed from whole ones only.

The Hugging Face trainer writes where it is told to: into a staging folder. Listing, renaming and rotation come after
it, here, and every rank learns whether they succeeded.
"""

from __future__ import annotations

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
from dynamic_dpo.trainers.checkpoints.shards import check_shards, shard_errors
from dynamic_dpo.trainers.ranks import on_main_process
from dynamic_dpo.utils.files import write_refused

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
    """Finds, verifies and writes the checkpoints of one run. Every method is collective over ranks.

    Args:
        trainer: The run's trainer.

    Attributes:
        staging: The folder in which a checkpoint is being filled; ``None`` while none is.
        saved_step: The step of the last checkpoint, -1 before the first.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.staging: Path | None = None
        self.saved_step = -1

    # ---- resuming ----

    def newest(self) -> str | None:
        """Return the newest whole checkpoint of the output folder, ``None`` if none was ever made.

        The main process looks. Newer ones that are damaged are named in a warning.

        Raises:
            CheckpointError: If there are checkpoints and none is whole.
        """
        run = self.trainer.args.output_dir

        def find() -> str | None:
            clean(run)
            newest = newest_complete(run)
            return None if newest is None else str(newest)

        return on_main_process(self.trainer.accelerator, find)

    def verified(self, wanted: str | bool | None) -> str | None:
        """Return the folder of the checkpoint to resume from, every byte of it verified.

        Args:
            wanted: What `transformers.Trainer.train` takes as ``resume_from_checkpoint``.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        if not wanted:
            return None
        if wanted is True:
            checkpoint = self.newest()
            if checkpoint is None:
                raise CheckpointError(f"{self.trainer.args.output_dir} holds no checkpoint to resume from")
        else:
            checkpoint = str(wanted)
            on_main_process(self.trainer.accelerator, lambda: check_complete(str(wanted)))
        # Torch itself unpickles what lies beside the shards.
        on_main_process(self.trainer.accelerator, lambda: check_shards(str(checkpoint)))
        # The Hugging Face trainer reads its own state with no care for what the file holds: try it first.
        with clear_reading_errors(checkpoint):
            if (path := Path(checkpoint) / TRAINER_STATE).is_file():
                TrainerState.load_from_json(str(path))
        return checkpoint

    def begin_from(self, checkpoint: str | None) -> None:
        """Make the output folder fit a run that goes on from ``checkpoint``, or starts."""
        run = self.trainer.args.output_dir

        def tidy() -> None:
            clean(run)
            if checkpoint and Path(checkpoint).resolve().parent == Path(run).resolve():
                set_aside_newer(checkpoint)

        on_main_process(self.trainer.accelerator, tidy)

    # ---- saving ----

    @contextmanager
    def staged(self, run: Path) -> Iterator[Path]:
        """Let the block fill a checkpoint of the present step; all of it is the run's after the block, or nothing.

        Args:
            run: The run's folder.

        Yields:
            The folder to fill, inside `staging`.

        Raises:
            CheckpointError: If a disk refuses something on any rank; earlier checkpoints are as they were.
        """
        accelerator, state = self.trainer.accelerator, self.trainer.state
        name = f"{CHECKPOINT_PREFIX}{state.global_step}"
        best = state.best_model_checkpoint
        if state.best_global_step == state.global_step:
            best = str(run / name)

        def prepare() -> None:
            with clear_disk_errors(run):
                stage(run)

        def finish() -> None:
            with clear_disk_errors(run):
                # The Hugging Face trainer wrote the staging folder's name into its state.
                state.best_model_checkpoint = best
                state.save_to_json(str(run / STAGING / name / TRAINER_STATE))
                rotate(commit(run, name), keep=self.trainer.args.save_total_limit, best=best)

        on_main_process(accelerator, prepare)
        self.staging = run / STAGING
        refusal: DynamicDPOError | None = None
        try:
            with clear_disk_errors(run):
                yield self.staging / name
        except DynamicDPOError as error:
            refusal = error
        finally:
            self.staging = None
        try:
            # All ranks have written their part once they have said how it went.
            self._raise_if_any_failed(refusal, run)
            on_main_process(accelerator, finish)
        except CheckpointError:
            if accelerator.is_main_process:
                clean(run)  # Its space may be what is missing.
            raise
        state.best_model_checkpoint = best
        self.saved_step = state.global_step

    def _raise_if_any_failed(self, error: DynamicDPOError | None, run: Path) -> None:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            failed = torch.tensor([error is not None], dtype=torch.int64, device=accelerator.device)
            failures = accelerator.gather(failed).tolist()
            if error is None and any(failures):
                error = CheckpointError(
                    f"rank {failures.index(1)} could not write its part of the checkpoint in {run}: see its output"
                )
        if error is not None:
            raise error


@contextmanager
def clear_reading_errors(checkpoint: str | None) -> Iterator[None]:
    """Turn what a file of a checkpoint raises that is damaged, or not this run's, into one clear error.

    Every file is read as tensors and plain values alone (`weights_only`); whatever is anything else is refused.
    """
    try:
        with shard_errors():
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
def clear_disk_errors(run: Path) -> Iterator[None]:
    """Turn a disk's refusal, whoever reports it, into one clear error."""
    try:
        with shard_errors():
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
