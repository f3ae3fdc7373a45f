"""The sections of the risk controller and of the margin log; their keys stand with the components that read them."""

from __future__ import annotations

from pydantic import Field, field_validator

from dynamic_dpo.config.base import refuse_fault
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.runs.alarms import AlarmConfig
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.utils.names import folder_fault, relative_path_fault


class RiskTestSection(settings_section("risk_test", RiskConfig)):  # type: ignore[misc]
    """The test of each controller batch against the threshold tau."""


class BetaUpdateSection(settings_section("beta_update", RiskConfig)):  # type: ignore[misc]
    """The update of beta after each test, and its bounds (beta_min ≤ beta_0 ≤ beta_max)."""


class RiskTargetSection(settings_section("risk_target", RiskConfig)):  # type: ignore[misc]
    """Mode target: the level at which the margins' upper tail is held, and how hard."""


class MonitorSection(settings_section("monitor", RiskConfig)):  # type: ignore[misc]
    """Method risk: the watch for a risen rate of exceedance."""

    @field_validator("mode", mode="before")
    @classmethod
    def _off_without_quotes(cls, value: object) -> object:
        # YAML 1.1 reads a bare off as false.
        return "off" if value is False else value


class AlarmsSection(settings_section("alarms", AlarmConfig)):  # type: ignore[misc]
    """What in the log of a training raises an alarm; docs/watching.md says what each means and train-sft has."""


class MarginLogSection(settings_section("margin_log", MarginLogConfig)):  # type: ignore[misc]
    """What is kept of the margins, once per controller update."""

    dpo_log_dir: str | None = Field(
        default=None, description="Folder used instead of log_dir by method dpo; null: log_dir."
    )

    @field_validator("log_dir", "dpo_log_dir")
    @classmethod
    def _stays_in_the_run(cls, value: str | None) -> str | None:
        # A folder given in full is the user's choice; a relative one is the run's, and its files are moved about.
        in_full = value is not None and value.startswith(("/", "~"))
        return refuse_fault(value, folder_fault if in_full else relative_path_fault)
