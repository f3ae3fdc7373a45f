"""`RiskBetaDPOTrainer`: the preference trainer with the risk controller, under the names users know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.risk.config import MonitorMode, RiskConfig, RiskMode
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.methods.settings import Scope
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers.arguments import default_arguments, pairs_per_update
from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
from dynamic_dpo.utils.settings import documented

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


class RiskBetaDPOTrainer(PreferenceTrainer):
    """DPO whose beta is set by the risk controller.

    Args:
        model: The policy, as in `PreferenceTrainer`.
        ref_model: The reference; ``None`` is the policy as given.
        args: `transformers.TrainingArguments` or `trl.DPOConfig` (its ``beta`` has no say: see ``dynamic_cfg``).
        train_dataset: Pairs to train on.
        eval_dataset: Pairs to evaluate on.
        processing_class: The tokenizer.
        callbacks: Callbacks of the Hugging Face trainer.
        optimizers: Optimizer and scheduler.
        peft_config: A `peft` configuration.
        dynamic_cfg: The controller's settings; the defaults are the faithful controller's.
        **kwargs: More of `PreferenceTrainer`: ``engine``, ``truncation``, ``max_nonfinite`` and the like.

    Raises:
        ConfigError: If a setting is out of range or unsupported, or ``method`` is given.
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
        dynamic_cfg: RiskBetaDPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if "method" in kwargs:
            raise ConfigError("RiskBetaDPOTrainer has its method; use PreferenceTrainer to choose another")
        self.dynamic_cfg = dynamic_cfg or RiskBetaDPOConfig()
        args = args if args is not None else default_arguments()
        config = self.dynamic_cfg.risk()
        method = Risk(
            config,
            pairs_per_update=pairs_per_update(config.scope, args),
            label_smoothing=float(getattr(args, "label_smoothing", 0.0)),
            device_batch=args.per_device_train_batch_size,
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
