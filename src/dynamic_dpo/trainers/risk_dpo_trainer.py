"""`RiskBetaDPOTrainer`: the preference trainer with the risk controller, under the names users know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Scope
from dynamic_dpo.methods.risk.config import MonitorMode, RiskConfig, RiskMode
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers.arguments import default_arguments, pairs_per_update
from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer


@dataclass
class RiskBetaDPOConfig:
    """Settings of the risk controller and of its margin log.

    Attributes:
        delta: Tolerated rate of exceedance, in (0, 1).
        momentum: Rate at which old batches are forgotten, in [0, 1] (``lambda`` in YAML).
        beta_0: Beta at the start, > 0.
        alpha: Largest step in ln beta of one update.
        gamma: Gain of the test statistic.
        beta_min: Lower bound of beta.
        beta_max: Upper bound of beta.
        warmup_steps: Controller batches that are only collected.
        log_margins: Whether margins are logged.
        log_dir: Folder of the margin log; a relative one lies in the run's output folder.
        jsonl_name: Name of the file of margin statistics.
        save_per_rank: Whether every rank also logs its own pairs.
        jsonl_sample_size: Margins that stand in each line itself.
        mode: ``paper`` (faithful), ``exact`` (calibrated), ``rm`` (nearly so, in constant memory) or ``target``
            (holds the margins at a level).
        scope: What a controller batch is: the device batch (``micro``) or the optimizer step (``step``).
        alpha_scale: Factor on alpha, for a scope with fewer updates than the one alpha was chosen for; ``"auto"``
            is the number of device batches, of all ranks, in a controller batch.
        window_multiple: Controller batches that the reference window of ``exact`` spans.
        seed: Seed of the draws that break ties in ``exact``.
        margin_budget: The level that a share delta of margins may exceed, nats; ``target`` needs it.
        gain_p: Proportional gain of ``target``.
        gain_i: Integral gain of ``target``, per update.
        monitor: What to do when the rate of exceedance has risen: ``off``, ``report``, ``warn`` or ``stop``.
        monitor_rate: The rate to detect; ``None``: the double of delta.
        monitor_threshold: Sum of evidence that raises the alarm.

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> RiskBetaDPOConfig(delta=0.05).risk().delta
        0.05
    """

    delta: float = 0.1
    momentum: float = 0.05
    beta_0: float = 0.1
    alpha: float = 0.005
    gamma: float = 2.0
    beta_min: float = 0.0
    beta_max: float = 2.0
    warmup_steps: int = 120
    log_margins: bool = True
    log_dir: str = "logs/margins"
    jsonl_name: str = "margins.jsonl"
    save_per_rank: bool = False
    jsonl_sample_size: int = 32
    mode: RiskMode = "paper"
    scope: Scope = "micro"
    alpha_scale: float | Literal["auto"] = 1.0
    window_multiple: int = 20
    seed: int = 0
    margin_budget: float | None = None
    gain_p: float = 1.0
    gain_i: float = 0.005
    monitor: MonitorMode = "off"
    monitor_rate: float | None = None
    monitor_threshold: float = 5000.0

    def __post_init__(self) -> None:
        self.risk()
        if self.jsonl_sample_size < 0:
            raise ConfigError(f"jsonl_sample_size must be at least 0, got {self.jsonl_sample_size}")

    def risk(self) -> RiskConfig:
        """Return the controller's part."""
        return RiskConfig(**{field.name: getattr(self, field.name) for field in fields(RiskConfig)})

    def margin_log(self) -> MarginLogConfig | None:
        """Return the margin log's part, ``None`` where nothing is logged."""
        if not self.log_margins:
            return None
        return MarginLogConfig(**{field.name: getattr(self, field.name) for field in fields(MarginLogConfig)})


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
