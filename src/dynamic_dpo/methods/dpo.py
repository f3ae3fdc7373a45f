"""Plain DPO with a fixed beta (Rafailov et al. 2023, arXiv:2305.18290), with conservative label smoothing.

The logistic loss lives here for every method that is built on it; it has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Control, PairForward, PreferenceMethod
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


def logistic_losses(margins: Tensor, beta: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return ``(1 - e)(-log sigmoid(beta h)) + e (-log sigmoid(-beta h))`` for margins ``h`` of shape [B].

    ``e`` above 0 is conservative DPO (Mitchell, 2023): labels are wrong with that probability.

    Example:
        >>> import torch
        >>> logistic_losses(torch.zeros(1), torch.tensor(0.1))
        tensor([0.6931])
    """
    import torch.nn.functional as F

    logits = beta * margins
    losses = -F.logsigmoid(logits)
    if label_smoothing:
        losses = (1.0 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-logits)
    return losses


@dataclass(frozen=True)
class DPOMethodConfig:
    """Settings of plain DPO: ``beta`` > 0, ``label_smoothing`` in [0, 0.5)."""

    beta: float = beta_setting()
    label_smoothing: float = setting(
        0.0, "Assumed probability that a pair's label is wrong (conservative DPO).", ge=0, lt=0.5
    )

    def __post_init__(self) -> None:
        check_settings(self)


class DPO(FixedBetaMethod):
    """DPO with a constant beta."""

    name = "dpo"
    Settings = DPOMethodConfig
    of_differences = True
    neutral = DPOMethodConfig()
    config: DPOMethodConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the weighted logistic loss of each pair. Shape [B]."""
        return control.weight * logistic_losses(forward.margins, control.beta, self.config.label_smoothing)


def loss_to_steer(loss: PreferenceMethod | None, beta_0: float, label_smoothing: float) -> PreferenceMethod:
    """Return what a controller steers: ``loss``, or where there is none the logistic loss with ``label_smoothing``.

    Raises:
        ConfigError: If both are given: the smoothing is the logistic loss's own.
    """
    if loss is None:
        return DPO(DPOMethodConfig(beta=beta_0, label_smoothing=label_smoothing))
    if label_smoothing:
        raise ConfigError(
            f"label_smoothing is {label_smoothing} and loss is {loss.name}: smoothing belongs to the logistic loss; "
            "give it to DPOMethodConfig, or leave loss out"
        )
    return loss
