"""A controller moves the beta of any loss that has one to move, and says why where there is none."""

from __future__ import annotations

import json

import pytest
import torch

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.methods import DPO, Control, DPOMethodConfig, PairForward, PreferenceMethod, Risk, Schedule
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.schedule import ScheduleConfig


class Square(PreferenceMethod):
    name = "square"

    def losses(self, forward: PairForward, control: Control) -> torch.Tensor:
        return (control.beta * forward.margins - 1.0) ** 2

    def evidence(self, forward: PairForward) -> torch.Tensor:
        return 2 * forward.margins.detach()


class Unsteerable(Square):
    name = "unsteerable"
    why_not_steered = "it has no beta"


def pairs(margins: torch.Tensor) -> PairForward:
    zeros, ones = torch.zeros_like(margins), torch.ones_like(margins)
    return PairForward(margins, zeros, zeros, zeros, ones, ones)


@pytest.mark.parametrize(
    "method",
    [Risk(RiskConfig(beta_0=0.5), loss=Square()), Schedule(ScheduleConfig(beta_0=0.5), loss=Square())],
)
def test_a_controller_hands_its_beta_to_the_loss_it_steers(method: PreferenceMethod) -> None:
    forward = pairs(torch.tensor([2.0, 4.0]))
    evidence = method.evidence(forward)
    assert evidence.tolist() == [4.0, 8.0]  # as the steered loss reads it
    assert method.losses(forward, method.control(evidence)).tolist() == [0.0, 1.0]
    assert method.summary()["loss"] == {"name": "square"}


@pytest.mark.parametrize("controller", [Risk, Schedule])
def test_a_loss_without_a_beta_to_move_is_refused_with_its_reason(controller: type[Risk]) -> None:
    with pytest.raises(ConfigError, match="cannot steer the beta of unsteerable: it has no beta"):
        controller(loss=Unsteerable())
    with pytest.raises(ConfigError, match="cannot steer the beta of risk: it is itself a controller of beta"):
        controller(loss=Risk())


@pytest.mark.parametrize("controller", [Risk, Schedule])
def test_label_smoothing_beside_another_loss_is_refused(controller: type[Risk]) -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing is 0.1 and loss is dpo"):
        controller(loss=DPO(), label_smoothing=0.1)
    smoothed = controller(label_smoothing=0.1).loss
    assert isinstance(smoothed, DPO)
    assert smoothed.config == DPOMethodConfig(beta=0.1, label_smoothing=0.1)


@pytest.mark.parametrize("controller", [Risk, Schedule])
def test_a_state_of_another_loss_is_refused(controller: type[Risk]) -> None:
    state = json.loads(json.dumps(controller(loss=Square()).state_dict()))
    with pytest.raises(CheckpointError, match="has loss 'square', this run has 'dpo'"):
        controller().load_state_dict(state)
