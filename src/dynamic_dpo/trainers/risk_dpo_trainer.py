"""`RiskBetaDPOTrainer`: the preference trainer with the risk controller, under the names users know."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.objective.trl_names import loss_of
from dynamic_dpo.methods.risk.config import MonitorMode, RiskConfig, RiskMode
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.methods.settings import Scope
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers.arguments import Truncation, default_arguments, pairs_per_update
from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
from dynamic_dpo.utils.settings import documented

logger = logging.getLogger("dynamic_dpo")

PartT = TypeVar("PartT", RiskConfig, MarginLogConfig)


@documented(RiskConfig, MarginLogConfig)
@dataclass
class RiskBetaDPOConfig:
    """Settings of the risk controller, `RiskConfig`, and of its margin log, `MarginLogConfig`, in one.

    Defaults and ranges are those of the two; ``log_margins`` says whether margins are logged at all.

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> RiskBetaDPOConfig(delta=0.05).risk().delta
        0.05
    """

    delta: float = RiskConfig.delta
    momentum: float = RiskConfig.momentum
    beta_0: float = RiskConfig.beta_0
    alpha: float = RiskConfig.alpha
    gamma: float = RiskConfig.gamma
    beta_min: float = RiskConfig.beta_min
    beta_max: float = RiskConfig.beta_max
    warmup_steps: int = RiskConfig.warmup_steps
    log_margins: bool = True
    log_dir: str = MarginLogConfig.log_dir
    jsonl_name: str = MarginLogConfig.jsonl_name
    save_per_rank: bool = MarginLogConfig.save_per_rank
    jsonl_sample_size: int = MarginLogConfig.jsonl_sample_size
    mode: RiskMode = RiskConfig.mode
    scope: Scope = RiskConfig.scope
    alpha_scale: float | Literal["auto"] = RiskConfig.alpha_scale
    window_multiple: int = RiskConfig.window_multiple
    seed: int = RiskConfig.seed
    margin_budget: float | None = RiskConfig.margin_budget
    gain_p: float = RiskConfig.gain_p
    gain_i: float = RiskConfig.gain_i
    monitor: MonitorMode = RiskConfig.monitor
    monitor_rate: float | None = RiskConfig.monitor_rate
    monitor_threshold: float = RiskConfig.monitor_threshold

    def __post_init__(self) -> None:
        self._part(RiskConfig)
        self._part(MarginLogConfig)

    def risk(self) -> RiskConfig:
        """Return the controller's part."""
        return self._part(RiskConfig)

    def margin_log(self) -> MarginLogConfig | None:
        """Return the margin log's part, ``None`` where nothing is logged."""
        return self._part(MarginLogConfig) if self.log_margins else None

    def _part(self, kind: type[PartT]) -> PartT:
        return kind(**{entry.name: getattr(self, entry.name) for entry in fields(kind)})


def _from_beta_of(args: Any) -> RiskBetaDPOConfig:
    """Return the default settings from the beta of a ``trl.DPOConfig``, bounds as far above it as the defaults'."""
    beta = float(getattr(args, "beta", RiskConfig.beta_0))
    highest = RiskConfig.beta_max
    if beta > highest:
        highest = beta * RiskConfig.beta_max / RiskConfig.beta_0
    return RiskBetaDPOConfig(beta_0=beta, beta_max=highest)


def _say_whose_beta(args: Any, dynamic_cfg: RiskBetaDPOConfig | None) -> None:
    """Warn of a beta that was given and has no say."""
    kind = type(args)
    default = getattr(kind, "__dataclass_fields__", {}).get("beta")
    if dynamic_cfg is None or default is None or args.beta in (default.default, dynamic_cfg.beta_0):
        return
    logger.warning(
        "training argument beta=%g has no say: the controller starts from dynamic_cfg.beta_0=%g. Leave dynamic_cfg "
        "out, or give it the beta",
        args.beta,
        dynamic_cfg.beta_0,
    )


def _with_quantization(args: Any, quantization_config: Any, model: Any) -> Any:
    """Return the arguments with a quantisation among ``model_init_kwargs``, where TRL keeps it, too."""
    if quantization_config is None:
        return args
    given = getattr(args, "model_init_kwargs", None) or {}
    if not isinstance(model, str):
        raise ConfigError(
            "quantization_config is for a model that is given by its name, and this one is loaded already: load it "
            "with that configuration, or leave it out"
        )
    if "quantization_config" in given:
        raise ConfigError("quantization_config stands in model_init_kwargs, too: leave one of them out")
    args = copy.copy(args)
    args.model_init_kwargs = {**given, "quantization_config": quantization_config}
    return args


class RiskBetaDPOTrainer(PreferenceTrainer):
    """DPO, or another loss that a ``trl.DPOConfig`` names, whose beta is set by the risk controller.

    Of a `trl.DPOConfig` the arguments ``loss_type``, ``loss_weights``, ``label_smoothing``, ``f_divergence_type``,
    ``f_alpha_divergence_coef``, ``use_weighting``, ``ld_alpha`` and ``discopop_tau`` make the loss. The likelihood
    alone (``sft``) has no beta to control and is trained without a controller.

    Args:
        model: The policy, as in `PreferenceTrainer`.
        ref_model: The reference; ``None`` is the policy as given.
        args: `transformers.TrainingArguments` or `trl.DPOConfig`; its ``beta`` is where the controller starts, unless
            ``dynamic_cfg`` says otherwise. The default learns, logs and cuts as a default `trl.DPOConfig` does.
        train_dataset: Pairs to train on.
        eval_dataset: Pairs to evaluate on.
        processing_class: The tokenizer.
        callbacks: Callbacks of the Hugging Face trainer.
        optimizers: Optimizer and scheduler.
        peft_config: A `peft` configuration.
        quantization_config: How the weights of a model that is given by its name are quantised on loading, as with
            ``model_init_kwargs``.
        data_collator: Refused, since TRL's trainer has one: see the message.
        dynamic_cfg: The controller's settings; the defaults are the faithful controller's, from the beta of ``args``.
        **kwargs: More of `PreferenceTrainer`: ``engine``, ``truncation``, ``max_nonfinite`` and the like.

    Raises:
        ConfigError: If a setting is out of range or unsupported, or ``method`` is given.
        DataError: If a data set holds no usable pair.
        ModelError: If a model cannot be loaded or scored.
    """

    reads_loss_arguments = True

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
        dynamic_cfg: RiskBetaDPOConfig | None = None,
        quantization_config: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        if "method" in kwargs:
            raise ConfigError("RiskBetaDPOTrainer has its method; use PreferenceTrainer to choose another")
        if train_dataset is None:
            raise ConfigError("train_dataset is required: give a datasets.Dataset of preference pairs")
        if data_collator is not None:
            raise ConfigError(
                "data_collator has no place here: the engine lays out each step's rows itself. To tokenise in your "
                "own way, give a data set with the columns prompt_ids, chosen_ids and rejected_ids"
            )
        if args is None:
            args = default_arguments()
            kwargs.setdefault("truncation", Truncation(max_length=1024))  # As with TRL's defaults.
        args = _with_quantization(args, quantization_config, model)
        self.dynamic_cfg = dynamic_cfg or _from_beta_of(args)
        _say_whose_beta(args, dynamic_cfg)
        config = self.dynamic_cfg.risk()
        loss = loss_of(args, beta=config.beta_0)
        method: PreferenceMethod = loss
        if loss.reads_margins:
            method = Risk(
                config,
                pairs_per_update=pairs_per_update(config.scope, args),
                loss=loss,
                device_batch=args.per_device_train_batch_size,
            )
        elif dynamic_cfg is not None:
            raise ConfigError(
                f"dynamic_cfg steers a beta, and loss_type={args.loss_type!r} has none: leave dynamic_cfg out, or "
                "add a loss that reads margins"
            )
        super().__init__(
            model,
            ref_model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks,
            optimizers,
            peft_config,
            method=method,
            **{"margin_log": self.dynamic_cfg.margin_log(), **kwargs},
        )
