"""The table of methods: one line each, in the order of the documentation."""

from __future__ import annotations

from dynamic_dpo.methods.alpha_dpo import AlphaDPO
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.beta_dpo import BetaDPO
from dynamic_dpo.methods.dpo import DPO
from dynamic_dpo.methods.epsilon_dpo import EpsilonDPO
from dynamic_dpo.methods.hinge import Hinge
from dynamic_dpo.methods.ipo import IPO
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.methods.robust import Robust
from dynamic_dpo.methods.schedule import Schedule
from dynamic_dpo.methods.simpo import SimPO
from dynamic_dpo.methods.wpo import WPO

METHODS: dict[str, type[PreferenceMethod]] = {
    "dpo": DPO,
    "risk": Risk,
    "schedule": Schedule,
    "robust": Robust,
    "ipo": IPO,
    "hinge": Hinge,
    "simpo": SimPO,
    "wpo": WPO,
    "beta_dpo": BetaDPO,
    "epsilon_dpo": EpsilonDPO,
    "alpha_dpo": AlphaDPO,
}
