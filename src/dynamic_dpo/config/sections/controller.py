"""The sections that say how beta is found: the method, the risk test, the update of beta, and their log.

Symbols as in ``docs/method.md``; every key stands here with its type, default, range and meaning, and
nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dynamic_dpo.config.base import Section, refuse, refuse_fault
from dynamic_dpo.config.sections.methods import WHY_NOT_STEERED, LossName, MethodName
from dynamic_dpo.utils.names import folder_fault, relative_path_fault


class MethodSection(Section):
    """Which method turns margins into beta and losses, and how it is run."""

    name: MethodName = Field(
        default="risk",
        description="What finds beta and the losses: risk (beta follows the risk test), schedule (beta moves by "
        "the clock, the control arm of risk), or a method by its name, see docs/methods.md.",
    )
    loss: LossName = Field(
        default="dpo",
        description="Methods risk and schedule: the method whose beta they move; its section is read, but for "
        "its beta.",
    )
    mode: Literal["paper", "exact", "rm", "target"] = Field(
        default="paper",
        description="Test of method risk: faithful (paper), calibrated so that beta does not drift on noise (exact), "
        "nearly so in constant memory (rm), or against a fixed margin budget (target).",
    )
    scope: Literal["micro", "step"] = Field(
        default="micro",
        description="What the controller sees at once: a device batch (micro), or all pairs of the optimizer "
        "step over all ranks (step).",
    )
    alpha_scale: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default=1.0,
        description="Factor (> 0) on beta_update.alpha, in mode target on risk_target.gain_i, e.g. for the fewer "
        "updates of scope step; auto: the device batches, of all devices, in a controller batch.",
    )
    window_multiple: int = Field(
        default=20,
        ge=2,
        description="Mode exact: the reference window spans at least this many controller batches.",
    )
    seed: int = Field(default=0, ge=0, description="Mode exact: seed of the draws that break ties.")
    max_nonfinite: int = Field(
        default=32, ge=0, description="Margins that may be NaN or infinite, in total, before the run stops."
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _has_a_beta_to_move(cls, value: object) -> object:
        if isinstance(value, str) and value in WHY_NOT_STEERED:
            refuse(
                f"cannot be {value}, since {WHY_NOT_STEERED[value]}: set method.name={value} to train with it"
            )
        return value


class ScheduleSection(Section):
    """The clock of method schedule."""

    drift_per_1000: float | Literal["match"] = Field(
        default="match",
        description="Change of ln beta per 1,000 controller updates; match: what method risk in mode paper "
        "shows on noise.",
    )


class RiskTestSection(Section):
    """The test of each controller batch against the threshold tau."""

    delta: float = Field(
        default=0.1, gt=0, lt=1, description="Tolerated share of margins that reach the threshold tau."
    )
    momentum: float = Field(
        default=0.1,
        ge=0,
        le=1,
        alias="lambda",
        description="Rate at which tau follows the latest controller batches (modes paper and rm), or the smoothed "
        "score does (target).",
    )
    beta_warmup: int = Field(
        default=120,
        ge=1,
        description="Controller batches from which the first tau is found; until then beta is beta_0.",
    )


class BetaUpdateSection(Section):
    """The update of beta after each test, and its bounds (beta_min ≤ beta_0 ≤ beta_max)."""

    beta_0: float = Field(default=0.1, gt=0, description="Beta at the start.")
    gamma: float = Field(
        default=2.0, gt=0, description="Gain of the test statistic before tanh (mode paper)."
    )
    alpha: float = Field(default=0.005, ge=0, description="Largest change of ln beta in one update.")
    beta_max: float = Field(default=2.0, gt=0, description="Upper bound of beta.")
    beta_min: float = Field(default=0.0, ge=0, description="Lower bound of beta.")

    @field_validator("beta_max")
    @classmethod
    def _not_below_the_start(cls, value: float, info: ValidationInfo) -> float:
        beta_0 = info.data.get("beta_0")
        if beta_0 is not None and value < beta_0:
            refuse(f"must be at least beta_update.beta_0 ({beta_0:g})")
        return value

    @field_validator("beta_min")
    @classmethod
    def _not_above_the_start(cls, value: float, info: ValidationInfo) -> float:
        beta_0 = info.data.get("beta_0")
        if beta_0 is not None and value > beta_0:
            refuse(f"must be at most beta_update.beta_0 ({beta_0:g})")
        return value


class RiskTargetSection(Section):
    """Mode target: the level at which the margins' upper tail is held, and how hard."""

    margin_budget: float | None = Field(
        default=None,
        description="The margin in nats, without beta, that a share risk_test.delta of the pairs may exceed; mode "
        "target needs it.",
    )
    gain_p: float = Field(default=1.0, ge=0, description="Gain on the smoothed score: ln beta per unit.")
    gain_i: float = Field(
        default=0.005,
        ge=0,
        description="Gain on the sum of the smoothed scores: ln beta per unit and update.",
    )


class MonitorSection(Section):
    """Method risk: the watch for a risen rate of exceedance."""

    mode: Literal["off", "report", "warn", "stop"] = Field(
        default="off",
        description="On an alarm: count it in the logs (report), also warn, or save a checkpoint and stop. Alarms "
        "mean nothing in mode paper.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The rate of exceedance to detect, above delta; null: twice delta, at most half-way to 1.",
    )
    threshold: float = Field(
        default=5000.0,
        gt=1,
        description="Evidence that raises the alarm; about the least mean number of updates between false alarms.",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _off_without_quotes(cls, value: object) -> object:
        # YAML 1.1 reads a bare off as false.
        return "off" if value is False else value


class MarginLogSection(Section):
    """What is kept of the margins, once per controller update."""

    jsonl_sample_size: int = Field(
        default=32, ge=0, description="Margins quoted in each line of margins.jsonl."
    )
    save_per_rank: bool = Field(
        default=False, description="Let every rank write its margins, not the first alone."
    )
    log_dir: str = Field(
        default="logs/margins",
        min_length=1,
        description="Folder of margins.jsonl and the .npy files; a relative one lies in save_dir.",
    )
    dpo_log_dir: str | None = Field(
        default=None, description="Folder used instead of log_dir by method dpo; null: log_dir."
    )

    @field_validator("log_dir", "dpo_log_dir")
    @classmethod
    def _stays_in_the_run(cls, value: str | None) -> str | None:
        # A folder given in full is the user's choice; a relative one is the run's, and its files are moved about.
        in_full = value is not None and value.startswith(("/", "~"))
        return refuse_fault(value, folder_fault if in_full else relative_path_fault)


def unmet_needs(config: Any) -> list[str]:
    """Return one line for each thing that the controller lacks or cannot do, seen over several sections.

    Args:
        config: The training configuration.
    """
    lines = []
    is_target = (config.method.name, config.method.mode) == ("risk", "target")
    if is_target and config.risk_target.margin_budget is None:
        lines.append(
            "risk_target.margin_budget is needed by method.mode target: the margin in nats that a share "
            "risk_test.delta of the pairs may exceed; the margin log of an earlier run shows what is usual"
        )
    rate, delta = config.monitor.rate, config.risk_test.delta
    if rate is not None and rate <= delta:
        lines.append(f"monitor.rate must be above risk_test.delta ({delta:g}), got {rate:g}")
    return lines
