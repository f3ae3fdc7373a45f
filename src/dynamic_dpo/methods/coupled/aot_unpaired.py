"""AOT without pairs: the distribution of chosen rewards over that of rejected ones (Melnyk et al., arXiv:2406.05882).

The chosen answers' log-ratios are sorted over the controller batch, and so are the rejected ones'; the k-th smallest
is held against the k-th smallest. Which answer was compared with which does not matter. It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import CoupledMethod
from dynamic_dpo.methods.coupled.aot import of_the_same_rank
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AOTUnpairedConfig:
    """Settings of AOT without pairs: ``beta`` > 0, ``label_smoothing`` in [0, 0.5)."""

    beta: float = beta_setting()
    label_smoothing: float = setting(
        0.0, "Assumed probability that an answer's label is wrong.", ge=0, lt=0.5
    )

    def __post_init__(self) -> None:
        check_settings(self)


class AOTUnpaired(CoupledMethod):
    """AOT without pairs, with a constant beta; controllers see the margins of the pairs as they are."""

    name = "aot_unpaired"
    Settings = AOTUnpairedConfig
    config: AOTUnpairedConfig

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Find for each answer the log-ratio of the same rank on the other side of the batch."""
        import torch

        chosen, rejected = forward.chosen_logratios, forward.rejected_logratios
        other_sides = [of_the_same_rank(chosen, rejected), of_the_same_rank(rejected, chosen)]
        return control._replace(offset=torch.stack(other_sides, dim=1))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the smoothed logistic loss of each chosen log-ratio over the rejected one of its rank. Shape [B].

        The rejected answers' gradients come from the same differences, in the pairs that those answers stand in. A
        pair that is a batch of its own has DPO's loss.
        """
        if control.offset is None:
            return control.weight * self._logistic(forward.margins, control)
        of_chosen = self._logistic(forward.chosen_logratios - control.offset[:, 0], control)
        of_rejected = self._logistic(control.offset[:, 1] - forward.rejected_logratios, control)
        # Summed over the batch both are the same number: one gives the value, both their gradients.
        return control.weight * (of_chosen + of_rejected - of_rejected.detach())

    def _logistic(self, ahead: Tensor, control: Control) -> Tensor:
        return logistic_losses(ahead, control.beta, self.config.label_smoothing)
