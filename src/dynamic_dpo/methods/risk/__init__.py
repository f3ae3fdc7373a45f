"""The risk controller: a statistical test of the margins moves beta; one file a mode, listed in `modes`.

Names are loaded when they are first used: settings are checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.methods.risk.config import RiskConfig
    from dynamic_dpo.methods.risk.controller import Risk

__all__ = ["Risk", "RiskConfig"]

_HOME = {"Risk": "controller", "RiskConfig": "config"}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
