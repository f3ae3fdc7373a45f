"""The threshold's two estimators: one quantile over the warm-up, then an exponential moving average.

The paper's controller asks the first while it warms up, and the second from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _check_quantile_level(q: float) -> None:
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must lie in [0, 1], got {q}")


def _as_margins(batch_margins: Tensor | Sequence[float]) -> Tensor:
    margins = torch.as_tensor(batch_margins).detach().to("cpu", torch.float32).reshape(-1)
    if margins.numel() == 0:
        raise ValueError("batch_margins is empty: a batch has at least one pair")
    if not bool(torch.isfinite(margins).all()):
        raise ValueError("batch_margins holds NaN or infinity: one such value would stay in tau for ever")
    return margins


def _quantile(margins: Tensor, q: float) -> float:
    value = _interpolated(margins, q)
    # Between ±3e38 float32 overflows, and an infinite tau would never come back.
    return value if math.isfinite(value) else _interpolated(margins.double(), q)


def _interpolated(margins: Tensor, q: float) -> float:
    # torch.quantile refuses more than 2**24 values; a sort has no such bound and interpolates alike.
    if margins.numel() <= 2**24:
        return float(torch.quantile(margins, q))
    ordered = margins.sort().values
    position = q * (ordered.numel() - 1)
    low = math.floor(position)
    high = min(low + 1, ordered.numel() - 1)
    return float(torch.lerp(ordered[low], ordered[high], position - low))


class WarmupQuantileAccumulator:
    """Collects the margins of the warm-up and gives their quantile at its end.

    Args:
        q: Quantile level in [0, 1], 1 - delta for the risk controller.

    Example:
        >>> warmup = WarmupQuantileAccumulator(0.5)
        >>> warmup.update(torch.tensor([1.0, 2.0]))
        >>> warmup.update(torch.tensor([3.0]))
        >>> warmup.finalize()
        2.0
    """

    def __init__(self, q: float) -> None:
        _check_quantile_level(q)
        self.q = q
        self.batches: list[Tensor] = []

    def update(self, batch_margins: Tensor | Sequence[float]) -> None:
        """Collect one batch of margins (nats, shape [N])."""
        self.batches.append(_as_margins(batch_margins))

    def finalize(self) -> float:
        """Return the quantile of everything collected, linearly interpolated in float32.

        Raises:
            ValueError: If nothing was collected.
        """
        if not self.batches:
            raise ValueError("no margins were collected: call update() before finalize()")
        return _quantile(torch.cat(self.batches), self.q)


class EMAUpdate:
    """A threshold that follows the batches' quantiles: ``tau = (1 - momentum) tau + momentum q(batch)``.

    Args:
        tau_0: The threshold to start from, in nats.
        q: Quantile level in [0, 1].
        momentum: Weight of the newest batch, in [0, 1] (``lambda`` in YAML).

    Example:
        >>> ema = EMAUpdate(tau_0=0.0, q=0.5, momentum=0.5)
        >>> ema.update_tau(torch.tensor([1.0, 2.0, 3.0]))
        1.0
    """

    def __init__(self, tau_0: float, q: float, momentum: float) -> None:
        _check_quantile_level(q)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        if not math.isfinite(tau_0):
            raise ValueError(f"tau_0 must be finite, got {tau_0}")
        self.tau = float(tau_0)
        self.q = q
        self.momentum = momentum

    def update_tau(self, batch_margins: Tensor | Sequence[float]) -> float:
        """Take in one batch of margins (nats, shape [N]) and return the new threshold."""
        batch_quantile = _quantile(_as_margins(batch_margins), self.q)
        self.tau = (1.0 - self.momentum) * self.tau + self.momentum * batch_quantile
        return self.tau
