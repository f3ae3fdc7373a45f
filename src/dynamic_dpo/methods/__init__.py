"""Preference methods by name: one file a method, one line in `METHODS` (`dynamic_dpo.methods.table`).

Names are loaded when they are first used: a file of settings is checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.methods.alpha_dpo import AlphaDPO, AlphaDPOConfig
    from dynamic_dpo.methods.base import (
        BuildContext,
        Control,
        LogitChunk,
        Needs,
        PairForward,
        PreferenceMethod,
        TokenStatistic,
    )
    from dynamic_dpo.methods.beta_dpo import BetaDPO, BetaDPOConfig
    from dynamic_dpo.methods.dpo import DPO, DPOMethodConfig
    from dynamic_dpo.methods.epsilon_dpo import EpsilonDPO, EpsilonDPOConfig
    from dynamic_dpo.methods.hinge import Hinge, HingeConfig
    from dynamic_dpo.methods.ipo import IPO, IPOConfig
    from dynamic_dpo.methods.risk import Risk, RiskConfig
    from dynamic_dpo.methods.robust import Robust, RobustConfig
    from dynamic_dpo.methods.schedule import Schedule, ScheduleConfig
    from dynamic_dpo.methods.simpo import SimPO, SimPOConfig
    from dynamic_dpo.methods.table import METHODS
    from dynamic_dpo.methods.wpo import WPO, WPOConfig

__all__ = [
    "DPO",
    "IPO",
    "METHODS",
    "WPO",
    "AlphaDPO",
    "AlphaDPOConfig",
    "BetaDPO",
    "BetaDPOConfig",
    "BuildContext",
    "Control",
    "DPOMethodConfig",
    "EpsilonDPO",
    "EpsilonDPOConfig",
    "Hinge",
    "HingeConfig",
    "IPOConfig",
    "LogitChunk",
    "Needs",
    "PairForward",
    "PreferenceMethod",
    "Risk",
    "RiskConfig",
    "Robust",
    "RobustConfig",
    "Schedule",
    "ScheduleConfig",
    "SimPO",
    "SimPOConfig",
    "TokenStatistic",
    "WPOConfig",
]

_HOME = {
    "AlphaDPO": "alpha_dpo",
    "AlphaDPOConfig": "alpha_dpo",
    "BetaDPO": "beta_dpo",
    "BetaDPOConfig": "beta_dpo",
    "BuildContext": "base",
    "Control": "base",
    "DPO": "dpo",
    "DPOMethodConfig": "dpo",
    "EpsilonDPO": "epsilon_dpo",
    "EpsilonDPOConfig": "epsilon_dpo",
    "Hinge": "hinge",
    "HingeConfig": "hinge",
    "IPO": "ipo",
    "IPOConfig": "ipo",
    "LogitChunk": "base",
    "METHODS": "table",
    "Needs": "base",
    "PairForward": "base",
    "PreferenceMethod": "base",
    "Risk": "risk",
    "RiskConfig": "risk",
    "Robust": "robust",
    "RobustConfig": "robust",
    "Schedule": "schedule",
    "ScheduleConfig": "schedule",
    "SimPO": "simpo",
    "SimPOConfig": "simpo",
    "TokenStatistic": "base",
    "WPO": "wpo",
    "WPOConfig": "wpo",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
