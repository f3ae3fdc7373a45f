"""IPO: margins are pulled to ``1 / (2 beta)`` instead of rewarded without end (Azar et al. 2023, arXiv:2310.12036).

Either the margin of log-ratios per token, as TRL and the authors of the paper trained it, or the summed one of the
paper's equation 17. It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IPOConfig:
    """Settings of IPO: ``beta`` > 0, and which margin is meant."""

    beta: float = beta_setting()
    length_normalised: bool = setting(
        True,
        "Divide log-ratios by the completions' tokens, as TRL does; false: sums, as the paper writes it.",
    )

    def __post_init__(self) -> None:
        check_settings(self)


class IPO(FixedBetaMethod):
    """IPO with a constant beta; controllers see the summed margins, whatever the loss does."""

    name = "ipo"
    Settings = IPOConfig
    of_differences = True
    config: IPOConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``(h - 1 / (2 beta))²`` of each pair. Shape [B]."""
        normalised = self.config.length_normalised
        margins = forward.length_normalised_margins if normalised else forward.margins
        return control.weight * (margins - 1.0 / (2.0 * control.beta)).square()
