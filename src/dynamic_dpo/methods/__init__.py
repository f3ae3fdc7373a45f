"""Preference methods by name: one file a method, one line in `METHODS`."""

from __future__ import annotations

from dynamic_dpo.methods.base import Control, Needs, PairForward, PreferenceMethod
from dynamic_dpo.methods.dpo import DPO, DPOMethodConfig
from dynamic_dpo.methods.risk import Risk, RiskConfig
from dynamic_dpo.methods.schedule import Schedule, ScheduleConfig

METHODS: dict[str, type[PreferenceMethod]] = {
    "dpo": DPO,
    "risk": Risk,
    "schedule": Schedule,
}

__all__ = [
    "DPO",
    "METHODS",
    "Control",
    "DPOMethodConfig",
    "Needs",
    "PairForward",
    "PreferenceMethod",
    "Risk",
    "RiskConfig",
    "Schedule",
    "ScheduleConfig",
]
