"""Offloading with a host that is played: what travels, how often, and that gradients are the same to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.offload import SMALLEST_BYTES, OffloadedActivations
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.trainers.reference_pass import collate_pairs
from tiny import random_pairs, tiny_gpt2, tiny_llama

CPU = torch.device("cpu")


class Host:
    """The other side: what came, and what went back."""

    def __init__(self) -> None:
        self.came: list[tuple[int, ...]] = []
        self.returned = 0

    def leave(self, tensor: Tensor) -> Tensor:
        self.came.append(tuple(tensor.shape))
        return tensor.clone()

    def return_to(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.returned += 1
        return tensor.clone().to(device)


def offloaded(model: nn.Module, host: Host, smallest: int = 1, device: torch.device = CPU) -> Any:
    return OffloadedActivations(model, device, smallest=smallest, leave=host.leave, return_to=host.return_to)


class Shared(nn.Module):
    """Three layers on one input, as queries, keys and values are, and one on their sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(6, 5) for _ in range(3))
        self.out = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        together: Tensor = sum(part(x) for part in self.parts)  # type: ignore[assignment]
        return self.out(together.sigmoid())  # type: ignore[no-any-return]


def test_what_three_layers_save_travels_once_and_weights_do_not() -> None:
    model, host = Shared(), Host()
    with offloaded(model, host) as context:
        loss = model(torch.randn(4, 6) * 2).square().sum()
    # The input of the three; the sigmoid's answer, which is also the last layer's input; the last layer's answer.
    assert sorted(host.came) == [(4, 5), (4, 6), (4, 7)]
    assert context.num_copies == 3
    loss.backward()
    assert host.returned >= 3
    assert all(p.grad is not None for p in model.parameters())


def test_gradients_are_the_same_to_the_last_bit() -> None:
    inputs = torch.randn(4, 6)

    def gradients(smallest: int) -> list[Tensor]:
        model = Shared()
        with offloaded(model, Host(), smallest):
            loss = model(inputs).square().sum()
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(map(torch.equal, gradients(1), gradients(10**9)))


def test_small_tensors_and_those_of_another_device_stay() -> None:
    model, inputs = Shared(), torch.randn(4, 6)
    for smallest, device, came in (
        (4 * 7 * 4, CPU, [(4, 7)]),
        (4 * 7 * 4 + 1, CPU, []),
        (1, torch.device("cuda", 0), []),
    ):
        host = Host()
        with offloaded(model, host, smallest, device):
            model(inputs).square().sum()
        assert host.came == came
    assert SMALLEST_BYTES == 1_048_576


def test_a_view_of_a_weight_and_autocasts_copy_of_it_stay() -> None:
    model, host = nn.Linear(6, 5, bias=False), Host()
    inputs = torch.randn(4, 6, requires_grad=True)
    with offloaded(model, host):
        # Half of the weight's rows, a copy in another format and its transpose: all saved for the input's gradient.
        loss = (inputs @ model.weight[:3].T).sum()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss + model(inputs).float().sum()
        loss = loss + (inputs @ model.weight.T.clone()).sum()
    assert set(host.came) == {(4, 6)}  # in float32 and in bfloat16
    loss.backward()
    assert inputs.grad is not None


def test_an_expanded_tensor_is_not_written_out() -> None:
    row, host = torch.randn(1, 5).expand(4, 5), Host()
    with offloaded(nn.Linear(1, 1), host):
        (torch.randn(4, 5, requires_grad=True) * row).sum()
    assert host.came == []


def test_a_place_that_holds_another_tensor_now_is_copied_again() -> None:
    model, host = nn.Linear(6, 5), Host()
    with offloaded(model, host):
        # Each square is freed before the next is made, and may get its place.
        losses = [(torch.full((4, 6), float(n)).requires_grad_() * 1.0).exp().sum() for n in range(3)]
    assert host.came == [(4, 6)] * 3
    for n, loss in enumerate(losses):
        assert loss.item() == pytest.approx(24 * torch.tensor(float(n)).exp().item())
    total = sum(losses)
    total.backward()  # type: ignore[union-attr]


def test_values_that_changed_in_place_are_another_tensor() -> None:
    host, weights = Host(), torch.ones(2, 3, requires_grad=True)
    held = torch.full((2, 3), 2.0)
    with offloaded(nn.Linear(1, 1), host):
        first = (weights * held).sum()
        held.mul_(5)
        second = (weights * held).sum()
    # Autograd itself would refuse this: the first product's factor is another one by now. The copy has the old one.
    (first + 10 * second).backward()
    assert host.came == [(2, 3), (2, 3)]
    assert weights.grad is not None
    assert weights.grad.unique().tolist() == [102.0]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_scored_step_keeps_its_gradients(
    make: Any, recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = collate_pairs(random_pairs(6, seed=4).to_list())["pairs"]
    hosts: list[Host] = []

    def played(model: nn.Module, device: torch.device) -> Any:
        hosts.append(Host())
        return offloaded(model, hosts[-1])

    monkeypatch.setattr("dynamic_dpo.engine.scorer.OffloadedActivations", played)
    monkeypatch.setattr("dynamic_dpo.engine.scorer.can_offload_from", lambda device: True)
    gradients = []
    for offload in (False, True):
        model = make()
        model.train()
        if recomputes:
            model.gradient_checkpointing_enable()
        scorer = PairScorer(model, EngineConfig(offload_activations=offload))
        scored = scorer.score(model, pairs)
        (scored.chosen - scored.rejected).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))
    [host] = hosts
    assert host.came
    matrices = {tuple(p.shape) for p in model.parameters() if p.dim() > 1}
    assert not matrices & set(host.came)


def test_on_a_cpu_the_setting_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("there is no other memory")

    monkeypatch.setattr("dynamic_dpo.engine.scorer.OffloadedActivations", refuse)
    model = tiny_llama()
    scorer = PairScorer(model, EngineConfig(offload_activations=True))
    scorer.score(model, collate_pairs(random_pairs(2).to_list())["pairs"]).chosen.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
