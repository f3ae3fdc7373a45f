"""Plain DPO with a fixed beta (Rafailov et al. 2023, arXiv:2305.18290), with conservative label smoothing.

The logistic loss lives here for every method that adapts only beta; it has no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Control, PairForward, PreferenceMethod


def logistic_losses(margins: Tensor, beta: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return ``(1 - e)(-log sigmoid(beta h)) + e (-log sigmoid(-beta h))`` for margins ``h`` of shape [B].

    ``e`` above 0 is conservative DPO (Mitchell, 2023): labels are wrong with that probability.

    Example:
        >>> import torch
        >>> logistic_losses(torch.zeros(1), torch.tensor(0.1))
        tensor([0.6931])
    """
    logits = beta * margins
    losses = -F.logsigmoid(logits)
    if label_smoothing:
        losses = (1.0 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-logits)
    return losses


@dataclass(frozen=True)
class DPOMethodConfig:
    """Settings of plain DPO: ``beta`` > 0, ``label_smoothing`` in [0, 0.5)."""

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ConfigError(f"beta must be a positive number, got {self.beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")


class DPO(PreferenceMethod):
    """DPO with a constant beta."""

    name = "dpo"

    def __init__(self, config: DPOMethodConfig | None = None) -> None:
        self.config = config or DPOMethodConfig()

    @property
    def beta(self) -> float:
        """The constant."""
        return self.config.beta

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the weighted logistic loss of each pair. Shape [B]."""
        return control.weight * logistic_losses(forward.margins, control.beta, self.config.label_smoothing)
