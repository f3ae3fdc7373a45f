"""The chunked head: the log-probabilities and gradients of a full softmax, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynamic_dpo.engine.head import LogitTransform, is_plain_linear, token_scores

N, WIDTH, VOCAB = 13, 6, 17


class Doubled(nn.Module):
    """A head that is more than a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2.0 * self.linear(hidden)


def token_logps(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, *, chunk: int) -> torch.Tensor:
    return token_scores(head, hidden, targets, chunk=chunk).logps


def problem(
    *, bias: bool, dtype: torch.dtype = torch.float64
) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB, bias=bias, dtype=dtype)
    hidden = torch.randn(N, WIDTH, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(0, VOCAB, (N,))


def oracle(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return head(hidden).log_softmax(-1)[torch.arange(len(targets)), targets]


def gradients(logps: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((logps * torch.linspace(-1, 2, N, dtype=logps.dtype)).sum(), leaves)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_values_and_gradients_are_the_full_softmaxs_for_every_chunk(
    chunk: int, bias: bool, wrapped: bool
) -> None:
    linear, hidden, targets = problem(bias=bias)
    head = Doubled(linear) if wrapped else linear
    leaves = (hidden, *linear.parameters())
    ours, expected = token_logps(head, hidden, targets, chunk=chunk), oracle(head, hidden, targets)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(ours, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_passes_gradcheck(bias: bool) -> None:
    head, hidden, targets = problem(bias=bias)

    def scored(states: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        # The head's own parameters are the other inputs: gradcheck moves them in place.
        return token_logps(head, states, targets, chunk=5)

    # A second backward pass computes the logits again, which rounds differently.
    assert torch.autograd.gradcheck(scored, (hidden, *head.parameters()), nondet_tol=1e-12)


def test_chunks_beyond_what_may_be_kept_and_a_second_backward_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, hidden, targets = problem(bias=True)
    leaves = (hidden, *head.parameters())
    results = []
    for room in (0, 2 * 4 * VOCAB * 8, 2**27):  # none of the chunks, two of four, all
        monkeypatch.setattr("dynamic_dpo.engine.head.KEPT_BYTES", room)
        logps = token_logps(head, hidden, targets, chunk=4)
        assert len(logps.grad_fn.kept) == {0: 0, 2**27: 4}.get(room, 2)  # type: ignore[union-attr]
        weighted = (logps * torch.linspace(-1, 2, N)).sum()
        results.append(torch.autograd.grad(weighted, leaves, retain_graph=True))
        results.append(torch.autograd.grad(weighted, leaves))
    for grads in results[1:]:
        for ours, theirs in zip(grads, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        assert token_logps(head, hidden, targets, chunk=4).grad_fn is None


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    head, hidden, targets = problem(bias=True)
    if frozen == "head":
        head.requires_grad_(False)
    else:
        hidden = hidden.detach()
    token_logps(head, hidden, targets, chunk=4).sum().backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (head.weight.grad is None) == (head.bias.grad is None) == (frozen == "head")


@pytest.mark.parametrize("wrapped", [False, True])
def test_bfloat16_states_are_normalised_in_float32(wrapped: bool) -> None:
    linear, hidden, targets = problem(bias=True, dtype=torch.bfloat16)
    head = Doubled(linear) if wrapped else linear
    logps = token_logps(head, hidden, targets, chunk=4)
    assert logps.dtype == torch.float32
    logits = head(hidden.detach()).float()
    expected = logits.log_softmax(-1)[torch.arange(N), targets]
    torch.testing.assert_close(logps, expected, rtol=0, atol=0.02)  # bfloat16 logits of about 1
    logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_under_autocast_the_matmul_is_half_and_the_weights_gradient_is_full() -> None:
    head, hidden, targets = problem(bias=False, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(head, hidden, targets, chunk=4)
        half = (hidden.bfloat16() @ head.weight.bfloat16().T).float()
    expected = half.log_softmax(-1)[torch.arange(N), targets]
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-6)
    grads = gradients(logps, hidden, head.weight)
    full = gradients(oracle(head, hidden, targets), hidden, head.weight)
    for ours, theirs in zip(grads, full, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_without_gradients_nothing_is_recorded() -> None:
    head, hidden, targets = problem(bias=False)
    with torch.no_grad():
        for module in (head, Doubled(head)):
            assert not token_logps(module, hidden, targets, chunk=4).requires_grad


def test_only_an_unmodified_linear_layer_takes_the_fast_path() -> None:
    head, hidden, targets = problem(bias=False)
    assert is_plain_linear(head)
    assert not is_plain_linear(Doubled(head))
    handle = head.register_forward_hook(lambda module, args, output: output * 3.0)
    assert not is_plain_linear(head)
    torch.testing.assert_close(token_logps(head, hidden, targets, chunk=4), oracle(head, hidden, targets))
    handle.remove()
    assert is_plain_linear(head)


TRANSFORMS = [LogitTransform(scale=0.25), LogitTransform(cap=1.5), LogitTransform(scale=3.0, cap=2.0)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["scaled", "capped", "both"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("room", [0, 2**27], ids=["computed again", "kept"])
def test_a_transformed_head_gives_the_full_softmaxs_values_and_gradients(
    transform: LogitTransform, wrapped: bool, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic_dpo.engine.head.KEPT_BYTES", room)
    linear, hidden, targets = problem(bias=True)
    head = Doubled(linear) if wrapped else linear
    leaves = (hidden, *linear.parameters())
    ours = token_scores(head, hidden, targets, chunk=4, transform=transform).logps
    logits = transform.scale * head(hidden)
    if transform.cap:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    expected = logits.log_softmax(-1)[torch.arange(N), targets]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(ours, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_a_capped_heads_gradient_passes_gradcheck() -> None:
    head, hidden, targets = problem(bias=True)

    def scored(states: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return token_scores(head, states, targets, chunk=5, transform=LogitTransform(0.5, 1.5)).logps

    assert torch.autograd.gradcheck(scored, (hidden, *head.parameters()), nondet_tol=1e-12)
