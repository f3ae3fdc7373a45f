"""What is compared: the arms, the conditions they meet, and the grid that DPO's best beta is chosen from.

An arm is a line of the table of methods with settings; what a method does with them is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamic_dpo.methods import METHODS, BuildContext, PreferenceMethod

# The grid is in units of beta_0; it spans a factor of 64.
BETA_GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

# The level that a tenth of the margins of the optimum itself exceeds, on pairs with clean labels, in nats: more than
# a user would know. See test_the_margin_budget_is_the_optimums_own_level.
MARGIN_BUDGET = 4.6


@dataclass(frozen=True)
class Arm:
    """A method with its settings.

    Attributes:
        name: What tables call it.
        method: Name in `METHODS`.
        settings: The method's own; a ``beta`` left out is beta_0.
        risk: Settings of the risk controller that differ from the defaults.
        takes_seed: Whether the method draws, in training, from a seed among its settings.
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    risk: Mapping[str, Any] = field(default_factory=dict)
    takes_seed: bool = False

    def build(self, *, beta_0: float, batch_size: int, seed: int) -> PreferenceMethod:
        """Return a new method object, as a run's settings would.

        Args:
            beta_0: The given beta. Bounds of controllers stand 20 times above it, as in the default settings.
            batch_size: Pairs in a controller batch.
            seed: Seed of the method's draws.
        """
        kind = METHODS[self.method]
        own = dict(self.settings)
        fields_of_settings = getattr(kind.Settings, "__dataclass_fields__", {})
        if "beta" in fields_of_settings:
            own.setdefault("beta", beta_0)
        if self.takes_seed and "seed" in fields_of_settings:
            own["seed"] = seed
        if "beta_0" in fields_of_settings:
            own |= {"beta_0": beta_0, "beta_max": 20.0 * beta_0, "scope": "step", **self.risk}
        return kind.build(BuildContext(own, beta_0, "step", pairs_per_update=lambda scope: batch_size))


ARMS = (
    Arm("DPO", "dpo"),
    Arm("schedule", "schedule"),
    Arm("risk, paper", "risk", risk={"mode": "paper"}),
    Arm("risk, exact", "risk", risk={"mode": "exact"}, takes_seed=True),
    Arm("risk, rm", "risk", risk={"mode": "rm"}),
    Arm("risk, target", "risk", risk={"mode": "target", "margin_budget": MARGIN_BUDGET}),
    Arm("β-DPO", "beta_dpo", takes_seed=True),
    Arm("ε-DPO", "epsilon_dpo"),
    Arm("α-DPO", "alpha_dpo", {"alpha": 0.1}),
    Arm("DPO, smoothed", "dpo", {"label_smoothing": 0.1}),
    Arm("robust", "robust", {"epsilon": 0.1}),
    Arm("IPO", "ipo"),
    Arm("hinge", "hinge"),
    Arm("SimPO", "simpo", {"beta": 2.0}),
    Arm("WPO", "wpo"),
)

# The three that every other is compared with.
GIVEN, BEST, CONTROL = "DPO", "DPO, best beta", "schedule"


def dpo_at(beta: float, name: str = BEST) -> Arm:
    """Return DPO with a beta of its own choosing."""
    return Arm(name, "dpo", {"beta": beta})


@dataclass(frozen=True)
class Condition:
    """The data that an arm meets.

    Attributes:
        num_pairs: Pairs to train on.
        noise: Mean rate of flipped labels.
        heterogeneous: Whether one half of the contexts has all of the flips.
    """

    num_pairs: int = 8192
    noise: float = 0.0
    heterogeneous: bool = False

    @property
    def name(self) -> str:
        """What tables call it.

        Example:
            >>> Condition(2048).name, Condition(noise=0.2, heterogeneous=True).name
            ('2k pairs, no flips', '8k pairs, 40 % flips in half of the contexts')
        """
        size = f"{self.num_pairs // 1024}k" if self.num_pairs % 1024 == 0 else str(self.num_pairs)
        if self.heterogeneous:
            return f"{size} pairs, {200 * self.noise:.0f} % flips in half of the contexts"
        return f"{size} pairs, {100 * self.noise:.0f} % flips" if self.noise else f"{size} pairs, no flips"


SIZES = (2048, 8192, 32768)
NOISE_RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
CONDITIONS = (
    *(Condition(num_pairs) for num_pairs in SIZES),
    *(Condition(noise=noise) for noise in NOISE_RATES[1:]),
    Condition(noise=0.2, heterogeneous=True),
)
