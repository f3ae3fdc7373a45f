"""What the trainer makes of training arguments: the user's step, the data settings, and what is refused."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.trainers.unused_arguments import warn_of_unused
from dynamic_dpo.utils.secrets import keep_tokens_unsaved

logger = logging.getLogger("dynamic_dpo")


@dataclass(frozen=True)
class StepShape:
    """The pairs of one optimizer step on one rank: ``device_batch`` × ``accumulation``."""

    device_batch: int
    accumulation: int

    @property
    def pairs(self) -> int:
        """Pairs of a full step on one rank."""
        return self.device_batch * self.accumulation


@dataclass(frozen=True)
class Truncation:
    """How pairs are cut to length, as in `dynamic_dpo.data.tokenize.tokenize_pairs`."""

    max_length: int | None = 512
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncation_mode: str = "keep_start"


def default_arguments() -> Any:
    """Return training arguments that run on this machine, into ``./dpo_output``.

    It learns and logs as a default ``trl.DPOConfig``: fine-tuning's usual 5e-5 is far too much for preferences.
    """
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir="dpo_output",
        learning_rate=1e-6,
        logging_steps=10,
        use_cpu=not cuda,
        bf16=cuda,
        report_to="none",
    )


def check_given(train_dataset: Any, processing_class: Any) -> None:
    """Refuse what is no data set to train on, or no tokenizer, before a model is loaded.

    Raises:
        ConfigError: If it is something else; it says what to give.
    """
    if isinstance(train_dataset, Mapping):
        names = ", ".join(map(repr, train_dataset)) or "nothing"
        raise ConfigError(
            f"train_dataset is a {type(train_dataset).__name__} of {names}: give one of them, or join them with "
            "datasets.concatenate_datasets"
        )
    if processing_class is None or hasattr(processing_class, "get_vocab"):
        return
    what = type(processing_class).__name__
    if hasattr(processing_class, "tokenizer"):
        raise ConfigError(
            f"processing_class is a {what}, and pairs are trained on as text alone: give its tokenizer"
        )
    raise ConfigError(f"processing_class must be a tokenizer of transformers, got {what}")


def whole_step_arguments(args: Any) -> tuple[Any, StepShape]:
    """Return a copy of ``args`` whose data loader yields whole steps, and the step the user asked for.

    Cutting a step into micro-batches is the engine's business, so accumulation moves into `training_step`.

    Raises:
        ConfigError: If the arguments ask for something that this trainer does not do.
    """
    check_parallelism(args)
    _refuse_unsupported(args)
    warn_of_unused(args)
    shape = StepShape(args.per_device_train_batch_size, args.gradient_accumulation_steps)
    args = copy.copy(args)
    keep_tokens_unsaved(args)
    args.per_device_train_batch_size = shape.pairs
    args.gradient_accumulation_steps = 1
    args.remove_unused_columns = False
    # It was heard by `keep_best_of`, which keeps more than the loop would: the loop's own way to it is not taken.
    args.load_best_model_at_end = False
    # The filter replaces a NaN loss by the average of the earlier ones: wrong numbers must be seen.
    args.logging_nan_inf_filter = False
    return args, shape


def check_parallelism(args: Any = None) -> None:
    """Refuse the ways of `accelerate launch`, and of training arguments, to use many GPUs that trainings do not have.

    What the launcher was asked for stands in the environment: that much is known before anything is loaded.

    Args:
        args: Training arguments, where there are some already.

    Raises:
        ConfigError: If there is something to refuse; it says what to do instead.
    """
    plugin = getattr(args, "fsdp_plugin_args", None) or {}
    sharded = _is_set("ACCELERATE_USE_FSDP") or bool(plugin)
    # accelerate's own default is 1, that of training arguments 2; where both are given, theirs count.
    version = plugin.get("fsdp_version", 2) if plugin else os.environ.get("FSDP_VERSION", "1")
    recomputes = plugin.get("activation_checkpointing") or _is_set("FSDP_ACTIVATION_CHECKPOINTING")
    either = "use DDP or FSDP2 (configs/accelerate/ holds a launch file for each)"
    given = getattr(args, "deepspeed", None)
    refusals = {
        f"training argument deepspeed={given!r}: DeepSpeed": (bool(given), either),
        "DeepSpeed": (_is_set("ACCELERATE_USE_DEEPSPEED"), either),
        "Megatron-LM": (_is_set("ACCELERATE_USE_MEGATRON_LM"), either),
        "tensor, context and sequence parallelism": (
            _is_set("ACCELERATE_USE_PARALLELISM_CONFIG")
            or getattr(args, "parallelism_config", None) is not None,
            f"a row is computed whole on one rank; {either}",
        ),
        "FSDP1": (
            sharded and str(version) != "2",
            "set fsdp_version: 2, as configs/accelerate/fsdp2.yaml does, or give --fsdp_version 2",
        ),
        "FSDP's own activation checkpointing": (
            sharded and bool(recomputes),
            "set fsdp_activation_checkpointing: false there, and engine.gradient_checkpointing=true in the run's "
            "settings (activation_checkpointing=True in training arguments)",
        ),
    }
    for name, (refused, instead) in refusals.items():
        if refused:
            verb = "are" if " and " in name else "is"
            raise ConfigError(f"{name} {verb} not supported: {instead}")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "on", "t", "true", "y", "yes")


def pairs_per_update(scope: str, args: Any) -> int:
    """Return the pairs of a full controller batch over all ranks.

    Args:
        scope: ``micro`` (a device batch on each rank) or ``step`` (the whole optimizer step).
        args: The user's training arguments.
    """
    accumulation = args.gradient_accumulation_steps if scope == "step" else 1
    return int(args.per_device_train_batch_size * accumulation * args.world_size)


def truncation_of(args: Any) -> Truncation:
    """Return the truncation a ``trl.DPOConfig`` asks for, or the default."""
    if not hasattr(args, "truncation_mode"):
        return Truncation()
    return Truncation(max_length=args.max_length, truncation_mode=args.truncation_mode)


def keep_best_of(
    args: Any, callbacks: Sequence[Any] | None, given: KeepBest | None
) -> tuple[KeepBest | None, list[Any]]:
    """Return how a run keeps its best weights, and the callbacks that are left.

    ``load_best_model_at_end`` and `transformers.EarlyStoppingCallback` are two words for it: what they say is done,
    by the machinery that also resumes.

    Args:
        args: The training arguments.
        callbacks: The user's callbacks.
        given: What was given under our own name.

    Raises:
        ConfigError: If it is said twice, or a run is to stop early and to keep its last weights all the same.
    """
    from transformers import EarlyStoppingCallback

    stops = [one for one in callbacks or () if isinstance(one, EarlyStoppingCallback)]
    others = [one for one in callbacks or () if not isinstance(one, EarlyStoppingCallback)]
    said = "load_best_model_at_end=True" if args.load_best_model_at_end else "EarlyStoppingCallback"
    if given is not None and (args.load_best_model_at_end or stops):
        raise ConfigError(f"keep_best and {said} say the same thing: leave one of them out")
    if len(stops) > 1:
        raise ConfigError("callbacks hold more than one EarlyStoppingCallback: leave one")
    if stops and not args.load_best_model_at_end:
        raise ConfigError(
            "EarlyStoppingCallback goes with the weights of the best evaluation: set load_best_model_at_end=True "
            "beside it, or give keep_best=KeepBest(patience=...) in its place"
        )
    if not args.load_best_model_at_end:
        return given, others
    return (
        KeepBest(
            metric=args.metric_for_best_model,
            greater_is_better=args.greater_is_better,
            patience=stops[0].early_stopping_patience if stops else None,
            min_delta=float(stops[0].early_stopping_threshold or 0.0) if stops else 0.0,
        ),
        others,
    )


def refuse_early_stopping(callbacks: Iterable[Any]) -> None:
    """Raise `ConfigError` for an `EarlyStoppingCallback` that was added to a trainer after it was made."""
    from transformers import EarlyStoppingCallback

    if any(isinstance(one, EarlyStoppingCallback) for one in callbacks):
        raise ConfigError(
            "EarlyStoppingCallback was added to a trainer that is made already: give it among the callbacks of the "
            "trainer, with load_best_model_at_end=True, or give keep_best=KeepBest(patience=...)"
        )


def model_options(args: Any, model: Any) -> dict[str, Any]:
    """Return how a ``trl.DPOConfig`` wants a model to be loaded that is given by its name.

    Args:
        args: The training arguments.
        model: The model, or its name.

    Raises:
        ConfigError: If it asks for what the trainer decides itself.
    """
    given = getattr(args, "model_init_kwargs", None)
    if not given:
        return {}
    if not isinstance(model, str):
        logger.warning(
            "training argument model_init_kwargs=%r has no effect: the model is loaded already", given
        )
        return {}
    refusals = {
        "trust_remote_code": "code that lies beside weights is never run: use a model that transformers knows",
        "device_map": "the trainer places the model: start with `accelerate launch` for several GPUs",
    }
    for name, why in refusals.items():
        if given.get(name):
            raise ConfigError(f"training argument model_init_kwargs[{name!r}]={given[name]!r}: {why}")
    if given.get("weights_only") is False:
        raise ConfigError(
            "training argument model_init_kwargs['weights_only']=False: a file of weights could then run code of its "
            "own when it is read. Leave it out, or save the model as safetensors first"
        )
    return {name: value for name, value in given.items() if name not in refusals}


def _refuse_unsupported(args: Any) -> None:
    refusals = {
        "n_gpu": (
            args.n_gpu > 1,
            "DataParallel is not supported; start with `accelerate launch` or show the process one GPU",
        ),
        "enable_jit_checkpoint": (
            bool(getattr(args, "enable_jit_checkpoint", False)),
            "a signal already ends training in a checkpoint, and that one is whole: leave it off",
        ),
        "auto_find_batch_size": (
            args.auto_find_batch_size,
            "a step's pairs are fixed; lower engine.tokens_per_microbatch to save memory",
        ),
        "trust_remote_code": (
            bool(getattr(args, "trust_remote_code", False)),
            "code that lies beside weights is never run: use a model that transformers knows",
        ),
        "bf16_full_eval": (
            args.bf16_full_eval,
            "pairs are evaluated in the arithmetic of training: leave it out",
        ),
        "fp16_full_eval": (
            args.fp16_full_eval,
            "pairs are evaluated in the arithmetic of training: leave it out",
        ),
        "use_liger_kernel": (
            bool(getattr(args, "use_liger_kernel", False)),
            "its kernels would be put in when training begins, behind the engine's checks, and its head in the place "
            "of the engine's, which needs no logits either: leave it out",
        ),
        "train_sampling_strategy": (
            args.train_sampling_strategy == "group_by_length",
            "the engine sorts each step's pairs by length already: leave it out",
        ),
    }
    for name, (refused, why) in refusals.items():
        if refused:
            raise ConfigError(f"training argument {name}={getattr(args, name)!r}: {why}")


def refuse_loss_arguments(args: Any) -> None:
    """Refuse what a ``trl.DPOConfig`` says of the loss, for trainers whose method decides on it.

    Raises:
        ConfigError: If there is something to refuse; it says what to do instead.
    """
    # Plain training arguments have none of these fields.
    loss_type = getattr(args, "loss_type", ["sigmoid"])
    loss_type = [loss_type] if isinstance(loss_type, str) else list(loss_type)
    divergence = getattr(args, "f_divergence_type", "reverse_kl")
    divergence = getattr(divergence, "value", divergence)
    refusals = {
        "loss_type": (loss_type != ["sigmoid"], "choose the loss by the method instead"),
        "loss_weights": (
            getattr(args, "loss_weights", None) is not None,
            "give the method the losses that are added to it, with their weights",
        ),
        **{
            name: (refused, "give it to the method, or to its objective, instead")
            for name, refused in (
                ("label_smoothing", bool(getattr(args, "label_smoothing", 0.0))),
                ("ld_alpha", getattr(args, "ld_alpha", None) is not None),
                ("f_divergence_type", divergence != "reverse_kl"),
                ("use_weighting", bool(getattr(args, "use_weighting", False))),
            )
        },
    }
    for name, (refused, why) in refusals.items():
        if refused:
            raise ConfigError(f"training argument {name}={getattr(args, name)!r}: {why}")
