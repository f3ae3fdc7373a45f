"""What stops a run that has gone wrong, before its numbers are believed.

Margins that are not finite, and margins that are not zero before the first step. The guard changes nothing itself.
Of margins that stay exactly zero after it, an alarm speaks: `dynamic_dpo.runs.alarms`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dynamic_dpo.engine.rounding import rounding_tolerance
from dynamic_dpo.errors import ModelError, NonFiniteError

logger = logging.getLogger("dynamic_dpo")


class MarginGuard:
    """Watches the margins of every controller batch.

    Args:
        max_nonfinite: Margins that may be NaN or infinite in total before the run stops.

    Attributes:
        num_nonfinite: Such margins so far.
        num_bad_gradients: Steps left out because their gradient was NaN or infinite although the margins were not.
        step_is_bad: Whether the current step has one; its gradients are then no good.
        start_arithmetic: The arithmetic whose rounding is all that a margin may be before the first step; ``None``
            where policy and reference differ from the start.
        policy_moved: Whether a step with a positive learning rate was made.
    """

    def __init__(self, *, max_nonfinite: int, start_arithmetic: torch.dtype | None = None) -> None:
        self.max_nonfinite = max_nonfinite
        self.start_arithmetic = start_arithmetic
        self.num_nonfinite = 0
        self.num_bad_gradients = 0
        self.step_is_bad = False
        self.policy_moved = False

    def state_dict(self) -> dict[str, int]:
        """Return the counts, which belong to the run and not to the process."""
        return {"num_nonfinite": self.num_nonfinite, "num_bad_gradients": self.num_bad_gradients}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore what `state_dict` gave."""
        self.num_nonfinite = int(state["num_nonfinite"])
        self.num_bad_gradients = int(state["num_bad_gradients"])

    def begin_step(self) -> None:
        """Forget the last step's verdict."""
        self.step_is_bad = False

    def check_margins(self, margins: Tensor, rows: list[int], *, num_tokens: Tensor, step: int) -> None:
        """Check the margins of one controller batch before the method learns from them.

        Args:
            margins: All ranks' margins, on the CPU. Shape [N].
            rows: Index of each pair in its data set.
            num_tokens: Tokens of each pair's two answers. Shape [N].
            step: Optimizer steps made so far.

        Raises:
            NonFiniteError: If more than ``max_nonfinite`` margins were not finite.
            ModelError: If margins differ from 0 before the policy has moved.
        """
        finite = torch.isfinite(margins)
        if not bool(finite.all()):
            self._count_nonfinite(margins, rows, finite, step)
        # A trainer may train twice: its second run's step 0 is not the policy's start.
        if step == 0 and not self.policy_moved and self.start_arithmetic is not None:
            self._check_start(margins[finite], num_tokens[finite], self.start_arithmetic)

    def check_gradient(self, norm: float, rows: list[int], *, step: int) -> bool:
        """Check the norm of a step's gradient before the optimizer uses it.

        Args:
            norm: The norm over all parameters, before clipping.
            rows: Index of each of this rank's pairs in its data set.
            step: Optimizer steps made so far.

        Returns:
            Whether it may be used.

        Raises:
            NonFiniteError: If it may not, and with it more than ``max_nonfinite`` margins and gradients were bad.
        """
        if math.isfinite(norm) and not self.step_is_bad:
            return True
        if self.step_is_bad:
            return False  # Its margins were counted already.
        self.step_is_bad = True
        self.num_bad_gradients += 1
        message = (
            f"step {step + 1}: the gradient's norm is {norm} though every margin is finite; the step is left "
            f"out ({self.num_bad_gradients} so far). Its rows on this rank: {rows[:16]}"
        )
        logger.warning(message)
        if self.num_nonfinite + self.num_bad_gradients > self.max_nonfinite:
            raise NonFiniteError(
                f"{message}. More than method.max_nonfinite = {self.max_nonfinite}: the run stops. Lower the "
                "learning rate or set max_grad_norm, look at the rows named, or check the model's weights"
            )
        return False

    def _count_nonfinite(self, margins: Tensor, rows: list[int], finite: Tensor, step: int) -> None:
        self.step_is_bad = True
        bad = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        self.num_nonfinite += len(bad)
        message = (
            f"step {step + 1}: {len(bad)} of {len(rows)} margins are NaN or infinite, rows {bad[:16]}; the step is "
            f"left out and they do not reach the controller ({self.num_nonfinite} so far)"
        )
        logger.warning(message)
        if self.num_nonfinite + self.num_bad_gradients > self.max_nonfinite:
            raise NonFiniteError(
                f"{message}. More than method.max_nonfinite = {self.max_nonfinite}: the run stops. Lower the "
                "learning rate, look at the rows named, or check the model's weights"
            )

    def _check_start(self, margins: Tensor, num_tokens: Tensor, arithmetic: torch.dtype) -> None:
        allowed = rounding_tolerance(num_tokens, arithmetic)
        excess = margins.abs() / allowed
        if len(margins) and float(excess.max()) > 1:
            worst = int(excess.argmax())
            raise ModelError(
                f"before the first step a margin is {float(margins[worst]):.3g} nats, where identical policy and "
                f"reference allow {float(allowed[worst]):.3g} for {int(num_tokens[worst])} tokens in "
                f"{str(arithmetic).removeprefix('torch.')}: they differ in weights, dtype, dropout (or what else the "
                "model draws in training) or adapter. If the stored reference log-probabilities are stale, remove "
                "the folder engine.reference_dir points to"
            )
