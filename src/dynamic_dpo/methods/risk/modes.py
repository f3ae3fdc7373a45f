"""The modes of the risk controller, one line each, and the only place where they are listed beside their names.

A mode is a file of this folder: a test, and the same test on many simulated chains at once.
"""

from __future__ import annotations

from dynamic_dpo.methods.risk.base import RiskTest
from dynamic_dpo.methods.risk.chains import RiskChains
from dynamic_dpo.methods.risk.config import RiskMode
from dynamic_dpo.methods.risk.exact import ExactChains, ExactTest
from dynamic_dpo.methods.risk.paper import PaperChains, PaperTest
from dynamic_dpo.methods.risk.rm import RobbinsMonroChains, RobbinsMonroTest
from dynamic_dpo.methods.risk.target import TargetChains, TargetTest

_MODES: tuple[tuple[type[RiskTest], type[RiskChains]], ...] = (
    (PaperTest, PaperChains),
    (ExactTest, ExactChains),
    (RobbinsMonroTest, RobbinsMonroChains),
    (TargetTest, TargetChains),
)

TESTS: dict[RiskMode, type[RiskTest]] = {test.mode: test for test, _ in _MODES}
CHAINS: dict[RiskMode, type[RiskChains]] = {test.mode: chains for test, chains in _MODES}
