"""The seam between preference methods and everything else.

A method sees four log-probabilities a pair, gives a beta and losses, and owns whatever state moves between
updates. It knows neither model nor trainer nor ranks: the trainer hands it all ranks' evidence, so that
every rank holds the same state. A new method subclasses `PreferenceMethod` and overrides what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.loss.dpo_loss import margin_compute

State = dict[str, Any]
Scope = Literal["micro", "step"]


@dataclass(frozen=True)
class PairForward:
    """What the engine gives for a batch of pairs; every tensor has shape [B].

    Attributes:
        policy_chosen_logps: Summed policy log-probabilities of the chosen completions, nats, with gradient.
        policy_rejected_logps: The same of the rejected completions.
        ref_chosen_logps: The reference's; zeros where the method needs no reference.
        ref_rejected_logps: The same of the rejected completions.
        chosen_lengths: Completion tokens behind each sum.
        rejected_lengths: The same of the rejected completions.
    """

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def margins(self) -> Tensor:
        """Chosen minus rejected log-ratio in nats, without beta. Shape [B]."""
        return margin_compute(
            self.policy_chosen_logps,
            self.policy_rejected_logps,
            self.ref_chosen_logps,
            self.ref_rejected_logps,
        )


class Control(NamedTuple):
    """What a method decides for a batch: ``beta`` of shape [] or [B], ``weight`` of shape [B]."""

    beta: Tensor
    weight: Tensor

    def select(self, index: Tensor) -> Control:
        """Return the control of the pairs at ``index`` (integers, shape [b]) of the batch."""
        return Control(self.beta if self.beta.ndim == 0 else self.beta[index], self.weight[index])


@dataclass(frozen=True)
class Needs:
    """What a method asks of the engine, beyond summed policy log-probabilities.

    Attributes:
        reference: Whether reference log-probabilities are scored at all.
        batch_evidence: Whether `PreferenceMethod.control` must see the whole controller batch, all ranks'
            pairs, before any loss of it is formed. It costs a second forward pass without gradients.
    """

    reference: bool = True
    batch_evidence: bool = False


class PreferenceMethod:
    """A preference method: fixed settings, one state, and the four calls the trainer makes in order.

    For each controller batch the trainer calls `evidence` and `control`, then `losses` for each micro-batch,
    and once, in training only, `observe`. The base class is complete but for `losses` and `beta`.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    scope: Scope = "step"

    @property
    def beta(self) -> float:
        """The beta that the next loss will use."""
        raise NotImplementedError

    def evidence(self, forward: PairForward) -> Tensor:
        """Return what the controller learns from: the margins, detached. Shape [B]."""
        return forward.margins.detach()

    def control(self, evidence: Tensor) -> Control:
        """Return beta and weights for the pairs behind ``evidence`` (shape [B]); changes no state."""
        beta = torch.tensor(self.beta, dtype=evidence.dtype, device=evidence.device)
        return Control(beta, torch.ones_like(evidence))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the loss of each pair, with gradient. Shape [B]."""
        raise NotImplementedError

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Take in one controller batch, all ranks' pairs, and return what to log about the update.

        Non-finite evidence is left out; where nothing finite remains, the state stays as it is.
        """
        return {}

    def state_dict(self) -> State:
        """Return the whole state as JSON types; floats survive the round trip exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: If the state is another method's or does not fit the settings.
        """

    def summary(self) -> dict[str, Any]:
        """Return what a run's record says of the method: at least its name."""
        return {"name": self.name}

    def start_notes(self, updates: int) -> list[str]:
        """Return sentences to print before a run of ``updates`` controller updates."""
        return []


def finite_margins(evidence: Tensor) -> Tensor:
    """Return the finite values of ``evidence`` as float32 on the CPU. Shape [≤ N]."""
    values = evidence.detach().to("cpu", torch.float32).reshape(-1)
    return values[torch.isfinite(values)]


def check_state(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` naming the first identifying entry of ``state`` that differs from ``expected``."""
    for key, value in expected.items():
        if state.get(key) != value:
            raise CheckpointError(
                f"the saved controller state has {key} {state.get(key)!r}, this run has {value!r}: "
                "resume with the settings the checkpoint was made with, or start a new run"
            )
