"""The weights of a run's best evaluation: on disk while it goes on, in its checkpoints, and at last in the model.

They lie in the run's folder, where each better evaluation replaces them, and every checkpoint has them too, as a
second name of the same file where the disk knows such: a run goes on from any checkpoint with what was best then.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.runs.files import BEST_WEIGHTS
from dynamic_dpo.runs.keep_best import BestSoFar, KeepBest
from dynamic_dpo.trainers.checkpoints.identity import data_fingerprint
from dynamic_dpo.trainers.checkpoints.saved import gathered_weights
from dynamic_dpo.trainers.checkpoints.whole import clear_disk_errors
from dynamic_dpo.trainers.metrics import PAIR_METRICS
from dynamic_dpo.trainers.ranks import on_main_process
from dynamic_dpo.utils.files import sync

logger = logging.getLogger("dynamic_dpo")


class BestWeights:
    """Keeps the trained weights of a run's best evaluation. Every method is collective over ranks.

    Args:
        trainer: The run's trainer, a `ResumableTrainer` with its data sets.
        settings: By what evaluations are judged, and for how long a run waits.

    Attributes:
        best: The bookkeeping, equal on all ranks.

    Raises:
        ConfigError: If the run never evaluates, or logs no such metric.
    """

    def __init__(self, trainer: Any, settings: KeepBest) -> None:
        self.trainer = trainer
        self.best = BestSoFar(settings)
        _check_evaluates(trainer.args, trainer.eval_dataset)
        if trainer.compute_metrics is None:
            # What evaluations will log is known before the first.
            sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else [None]
            prefixes = ["eval_" if name is None else f"eval_{name}_" for name in sets]
            settings.value_in({prefix + name: 0.0 for prefix in prefixes for name in ("loss", *PAIR_METRICS)})

    @property
    def identity(self) -> dict[str, Any]:
        """What evaluations are compared by: a run does not go on from a checkpoint that has compared others."""
        settings, sets = self.best.settings, self.trainer.eval_dataset
        data = {
            name: data_fingerprint(one)
            for name, one in (sets if isinstance(sets, dict) else {"": sets}).items()
        }
        return {"metric": settings.name, "greater_is_better": settings.wants_greater, "data": data}

    def start_anew(self) -> None:
        """Forget what an earlier run, or an earlier training of this trainer, has kept."""
        self.best = BestSoFar(self.best.settings)
        self.forget_files()
        if self.trainer.method.steers_beta and self.best.settings.name.endswith("loss"):
            logger.warning(
                "keep_best.metric is %s, and the method moves beta: it compares evaluations at different betas. "
                "eval_accuracy and eval_margins/mean do not depend on beta",
                self.best.settings.metric,
            )

    # ---- at an evaluation ----

    def observe(self, metrics: dict[str, float], *, step: int, beta: float | None) -> bool:
        """Take an evaluation into account, and write the weights if it is the best so far.

        An evaluation of a step that has been taken into account already is passed over.

        Args:
            metrics: All that the evaluation has logged.
            step: Optimizer steps made.
            beta: The method's beta.

        Returns:
            Whether the run is to end, for want of improvement.

        Raises:
            CheckpointError: If a disk refuses the weights.
            ConfigError: If the evaluation does not log the metric.
        """
        settings, accelerator = self.best.settings, self.trainer.accelerator
        if step == self.best.last_step:
            return self.best.is_out_of_patience
        # Metrics of the user's own may differ between ranks; what is kept may not.
        value = on_main_process(accelerator, lambda: settings.value_in(metrics))
        if self.best.observe(step, value, beta):
            self._write()
        if self.best.is_out_of_patience:
            logger.info("the run ends at step %d: %s", step, self.best.why_it_ended())
        return self.best.is_out_of_patience

    def _write(self) -> None:
        """Write the trained weights as they are now to the run's folder: whole, or the earlier ones stay."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        names = _trained(model)
        if self.trainer.is_fsdp_enabled:
            whole = gathered_weights(model)
            weights = {name: whole[name] for name in names if name in whole}
        else:
            weights = {name: weight.detach() for name, weight in names.items()}

        def write() -> None:
            path = self._path
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            # Not into the file that is there: checkpoints may know it under a name of their own.
            save_file({name: one.contiguous().cpu() for name, one in weights.items()}, unfinished)
            sync(unfinished)
            unfinished.replace(path)
            sync(path.parent)

        self._on_disk(write)

    # ---- checkpoints ----

    def write_into(self, checkpoint: Path) -> None:
        """Add the best weights so far to a checkpoint that is being filled."""
        if self.best.step is not None:
            self._on_disk(lambda: _share(self._path, checkpoint / BEST_WEIGHTS))

    def read_from(self, checkpoint: Path, state: dict[str, Any] | None) -> None:
        """Go on with what was best when a checkpoint was written.

        Args:
            checkpoint: The checkpoint's folder.
            state: The bookkeeping in it; ``None`` for a checkpoint of a run that kept none.

        Raises:
            CheckpointError: If its weights are missing or another model's.
        """
        if state is None:
            logger.warning("%s has kept no best weights: those of evaluations from here on are", checkpoint)
            self.start_anew()
            return
        self.best.load_state_dict(state)
        if self.best.step is None:
            self.forget_files()
            return
        source = checkpoint / BEST_WEIGHTS
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        on_main_process(self.trainer.accelerator, lambda: _check_fits(source, model))
        self._on_disk(lambda: _share(source, self._path))

    def forget_files(self) -> None:
        """Remove the weights from the run's folder: an earlier run's, or the run's own once its model holds them."""
        self._on_disk(lambda: shutil.rmtree(self._path.parent, ignore_errors=True))

    # ---- at the end ----

    def put_back(self) -> None:
        """Give the model the best weights, and say whose they are.

        Raises:
            CheckpointError: If they cannot be read.
        """
        logger.info("%s", self.best.what_is_kept())
        if self.best.step is None:
            return
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        names = on_main_process(trainer.accelerator, lambda: _names_in(self._path))
        if trainer.is_fsdp_enabled:
            # The first rank reads, and each gets its shards: other machines need not see the run's folder.
            is_main = trainer.accelerator.is_main_process
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
            values: dict[str, Any] = dict(_read(self._path)) if is_main else {}
            set_model_state_dict(model, values, options=options)
        else:
            self._copy_into(_trained(model), names)
        self.forget_files()

    def _copy_into(self, parameters: dict[str, torch.nn.Parameter], names: list[str]) -> None:
        accelerator = self.trainer.accelerator
        values = _read(self._path) if accelerator.is_main_process else {}
        with torch.no_grad():
            for name in names:
                parameter = parameters[name]
                if values:
                    parameter.copy_(values[name])
                if accelerator.num_processes > 1:
                    torch.distributed.broadcast(parameter.data, src=0)

    @property
    def _path(self) -> Path:
        return Path(self.trainer.args.output_dir) / BEST_WEIGHTS

    def _on_disk(self, do: Any) -> None:
        def on_main() -> None:
            with clear_disk_errors(Path(self.trainer.args.output_dir)):
                do()

        on_main_process(self.trainer.accelerator, on_main)


def _check_evaluates(args: Any, eval_dataset: Any) -> None:
    if eval_dataset is None or (isinstance(eval_dataset, dict) and not eval_dataset):
        raise ConfigError(
            "keep_best chooses by held-out pairs, and there are none: give eval_dataset (in a file dataset.val_ratio "
            "above 0, or dataset.eval_dataset_name), or leave keep_best out"
        )
    if getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
        raise ConfigError(
            "keep_best chooses by evaluations, and the run makes none: set eval_strategy and eval_steps (in a file "
            "dpo_training.eval_steps), or leave keep_best out"
        )


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the weights that training moves, by name; tied ones have one."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _share(source: Path, target: Path) -> None:
    """Make ``target`` a second name of a file that is never written to again, or a copy where the disk knows none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(source, unfinished)
    except OSError:
        shutil.copyfile(source, unfinished)
        sync(unfinished)
    unfinished.replace(target)
    # Two names of one file: the rename leaves both, and does nothing.
    unfinished.unlink(missing_ok=True)
    sync(target.parent)


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as saved:
            return sorted(saved.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the best weights of the run, {path}, cannot be read ({error}): resume from a checkpoint, which has them"
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as saved:
        return {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - safe_open is no mapping


def _check_fits(path: Path, model: torch.nn.Module) -> None:
    expected = {name: tuple(weight.shape) for name, weight in _trained(model).items()}
    try:
        with safe_open(path, framework="pt") as saved:
            found = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): the weights of the best evaluation are in it; resume from another "
            "checkpoint"
        ) from error
    if found != expected:
        raise CheckpointError(f"{path} holds another model's weights: resume from another checkpoint")
