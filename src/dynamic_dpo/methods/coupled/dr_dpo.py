"""Dr. DPO: pairs with a large loss, which may be labelled wrongly, count for less (Wu et al. 2024, arXiv:2407.07880).

The mean of DPO's losses over the controller batch gives way to ``-beta' log mean exp(-loss / beta')``: the worst case
over distributions of pairs in a ball around the data's. It has no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import CoupledMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DrDPOConfig:
    """Settings of Dr. DPO: ``beta`` > 0, ``beta_prime`` > 0."""

    beta: float = beta_setting()
    beta_prime: float = setting(
        1.0, "Scale of losses beyond which a pair counts for less; the larger, the more like dpo.", gt=0
    )

    def __post_init__(self) -> None:
        check_settings(self)


class DrDPO(CoupledMethod):
    """Dr. DPO with a constant beta."""

    name = "dr_dpo"
    Settings = DrDPOConfig
    of_differences = True
    config: DrDPOConfig

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Find the batch's loss, and how much each pair counts in it: 1 on average."""
        import torch

        scaled = -logistic_losses(forward.margins, control.beta) / self.config.beta_prime
        counts = len(scaled) * scaled.softmax(0)
        mean = scaled.logsumexp(0) - math.log(len(scaled))
        whole = (-self.config.beta_prime * mean).expand(len(scaled))
        return control._replace(offset=torch.stack([counts, whole], dim=1))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the batch's loss for each pair, with the gradient of the pair's part in it. Shape [B].

        A pair that is a batch of its own has DPO's loss.
        """
        losses = logistic_losses(forward.margins, control.beta)
        if control.offset is not None:
            counts, whole = control.offset.unbind(1)
            losses = whole + counts * (losses - losses.detach())
        return control.weight * losses
