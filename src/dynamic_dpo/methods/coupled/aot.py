"""AOT: the batch's distribution of differences is to dominate the reference's (Melnyk et al. 2024, arXiv:2406.05882).

The policy's differences of log-probabilities, chosen minus rejected, are sorted over the controller batch, and so are
the reference's; the k-th smallest is held against the k-th smallest, whichever pairs they come from. It has no state.
"""

from __future__ import annotations

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
class AOTConfig:
    """Settings of AOT: ``beta`` > 0, ``label_smoothing`` in [0, 0.5)."""

    beta: float = beta_setting()
    label_smoothing: float = setting(0.0, "Assumed probability that a pair's label is wrong.", ge=0, lt=0.5)

    def __post_init__(self) -> None:
        check_settings(self)


class AOT(CoupledMethod):
    """AOT on pairs with a constant beta; controllers see the margins of the pairs themselves."""

    name = "aot"
    Settings = AOTConfig
    config: AOTConfig

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Hold each pair's difference against the reference's difference of the same rank in the batch."""
        policy = forward.policy_chosen_logps - forward.policy_rejected_logps
        reference = forward.ref_chosen_logps - forward.ref_rejected_logps
        return control._replace(offset=of_the_same_rank(policy, reference))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the smoothed logistic loss of ``d - d_ref``, ``d_ref`` of the same rank as ``d``. Shape [B].

        A pair that is a batch of its own has DPO's loss.
        """
        ahead = forward.margins
        if control.offset is not None:
            ahead = forward.policy_chosen_logps - forward.policy_rejected_logps - control.offset
        return control.weight * logistic_losses(ahead, control.beta, self.config.label_smoothing)


def of_the_same_rank(values: Tensor, others: Tensor) -> Tensor:
    """Return for each of ``values`` the one of ``others`` with the same rank among its own. Shape [N].

    Example:
        >>> import torch
        >>> of_the_same_rank(torch.tensor([5.0, -1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor([30., 10., 20.])
    """
    order = values.argsort(stable=True)
    matched = others.new_empty(others.shape)
    matched[order] = others.sort(stable=True).values
    return matched
