"""Losses of single pairs, worked in float64 from the formulas of their papers; where each of them pulls a pair to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import (
    METHODS,
    AlphaPO,
    AlphaPOConfig,
    APODown,
    APODownConfig,
    APOZero,
    APOZeroConfig,
    BCOPair,
    BCOPairConfig,
    ChiPO,
    ChiPOConfig,
    DiscoPOP,
    DiscoPOPConfig,
    DPONorm,
    DPONormConfig,
    EXOPair,
    EXOPairConfig,
    HyPO,
    HyPOConfig,
    NCAPair,
    NCAPairConfig,
    PairForward,
    PreferenceMethod,
    SimPO,
    SimPOConfig,
    SPPOHard,
    SPPOHardConfig,
)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs(
    chosen: float,
    rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    *,
    lengths: tuple[int, int] = (8, 4),
) -> PairForward:
    return PairForward(
        doubles(chosen).requires_grad_(),
        doubles(rejected).requires_grad_(),
        doubles(ref_chosen),
        doubles(ref_rejected),
        *(torch.tensor([length]) for length in lengths),
    )


def pair() -> PairForward:
    """Log-ratios 4 and -2 nats, margin 6; 8 and 4 tokens; a reference that prefers the rejected answer by 10."""
    return pairs(-16.0, -12.0, -20.0, -10.0)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def divergence(q: float, epsilon: float) -> float:
    return q * math.log(q / (1 - epsilon)) + (1 - q) * math.log((1 - q) / epsilon)


def loss_and_slopes(method: PreferenceMethod, forward: PairForward) -> tuple[float, float, float]:
    """The loss and its derivatives by the two log-probabilities."""
    loss = method.losses(forward, method.control(method.evidence(forward)))
    slopes = torch.autograd.grad(
        loss.sum(), (forward.policy_chosen_logps, forward.policy_rejected_logps), allow_unused=True
    )
    return loss.item(), *(0.0 if slope is None else slope.item() for slope in slopes)


WORKED: dict[str, tuple[PreferenceMethod, float]] = {
    "exo_pair": (EXOPair(EXOPairConfig(beta=0.5, epsilon=0.1)), divergence(sigmoid(3.0), 0.1)),
    "nca_pair": (
        NCAPair(NCAPairConfig(beta=0.5)),
        softplus(-2.0) + 0.5 * softplus(2.0) + 0.5 * softplus(-1.0),
    ),
    "bco_pair": (BCOPair(BCOPairConfig(beta=0.5)), softplus(-2.0) + softplus(-1.0)),
    # 1 / (2 beta) is 2: the chosen log-ratio 4 is 2 too high, the rejected one where it should be.
    "sppo_hard": (SPPOHard(SPPOHardConfig(beta=0.25)), (4.0 - 2.0) ** 2 + (-2.0 + 2.0) ** 2),
    "apo_zero": (APOZero(APOZeroConfig(beta=0.5)), 1 - sigmoid(2.0) + sigmoid(-1.0)),
    "apo_down": (APODown(APODownConfig(beta=0.5)), sigmoid(2.0) + 1 - sigmoid(3.0)),
    "discopop": (
        DiscoPOP(DiscoPOPConfig(beta=0.05, tau=0.1)),
        sigmoid(-3.0) * softplus(-0.3) + sigmoid(3.0) * math.exp(-0.3),
    ),
    # 4 nats over 8 tokens, -2 over 4: 1 nat a token.
    "dpo_norm": (DPONorm(DPONormConfig(beta=2.0)), softplus(-2.0)),
    "chi_po": (
        ChiPO(ChiPOConfig(beta=0.01)),
        softplus(-0.01 * (math.exp(4.0) + 4.0 - math.exp(-2.0) + 2.0)),
    ),
    "chi_po, rewards bounded": (ChiPO(ChiPOConfig(beta=0.5, max_reward=1.5)), softplus(-3.0)),
    "chi_po, ratios bounded": (
        ChiPO(ChiPOConfig(beta=0.1, max_logratio=1.0)),
        softplus(-0.1 * (math.e + 4.0 - math.exp(-2.0) + 2.0)),
    ),
    # Geometric means of the tokens' probabilities: e^-2 and e^-3.
    "alpha_po": (
        AlphaPO(AlphaPOConfig(beta=2.0, alpha=0.5, gamma_beta_ratio=0.25)),
        softplus(-(2.0 * ((1 - math.exp(1.0)) / 0.5 - (1 - math.exp(1.5)) / 0.5) - 0.5)),
    ),
    "alpha_po, alpha below 0": (
        AlphaPO(AlphaPOConfig(beta=2.0, alpha=-0.5, gamma_beta_ratio=0.0)),
        softplus(-2.0 * ((1 - math.exp(-1.0)) / -0.5 - (1 - math.exp(-1.5)) / -0.5)),
    ),
    # The reference is against the pair and counts as neutral: -16 + 12 alone.
    "hypo": (HyPO(HyPOConfig(beta=0.5)), softplus(2.0)),
}


@pytest.mark.parametrize("name", WORKED)
def test_a_pairs_loss_is_the_formulas(name: str) -> None:
    method, loss = WORKED[name]
    assert loss_and_slopes(method, pair())[0] == pytest.approx(loss, rel=1e-12)


def test_every_loss_of_this_room_is_worked() -> None:
    room = {name for name, method in METHODS.items() if ".pairwise." in method.__module__}
    assert {method.name for method, _ in WORKED.values()} == room


@pytest.mark.parametrize("name", WORKED)
def test_the_gradient_is_the_losss_difference_quotient(name: str) -> None:
    method, step = WORKED[name][0], 1e-6

    def loss(chosen: float, rejected: float) -> float:
        return loss_and_slopes(method, pairs(chosen, rejected, -20.0, -10.0))[0]

    _, by_chosen, by_rejected = loss_and_slopes(method, pair())
    steps = ((step, 0.0), (0.0, step))
    quotients = [(loss(-16 + a, -12 + b) - loss(-16 - a, -12 - b)) / (2 * step) for a, b in steps]
    assert [by_chosen, by_rejected] == pytest.approx(quotients, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", WORKED)
def test_a_weight_is_a_factor_on_the_loss(name: str) -> None:
    method, loss = WORKED[name]
    control = method.control(method.evidence(pair()))
    halved = method.losses(pair(), control._replace(weight=0.5 * control.weight))
    assert halved.item() == pytest.approx(0.5 * loss, rel=1e-12)


@pytest.mark.parametrize("name", WORKED)
def test_beta_is_the_controls_not_the_methods_own(name: str) -> None:
    method, loss = WORKED[name]
    control = method.control(method.evidence(pair()))
    other = method.losses(pair(), control._replace(beta=doubles(0.7 * method.beta)[0])).item()
    same = METHODS[method.name](
        type(method.config)(**{**vars(method.config), "beta": 0.7 * method.beta})  # type: ignore[attr-defined,call-arg]
    )
    assert other == pytest.approx(loss_and_slopes(same, pair())[0], rel=1e-12)
    if name != "chi_po, rewards bounded":
        assert other != pytest.approx(loss, rel=1e-3)


# ---- where they pull to ----


def margin_without_pull(method: PreferenceMethod, low: float, high: float) -> float:
    """The margin at which a pair with equal and opposite log-ratios is left alone, by bisection."""

    def slope(margin: float) -> float:
        _, by_chosen, by_rejected = loss_and_slopes(
            method, pairs(-20.0 + margin / 2, -20.0 - margin / 2, -20.0, -20.0)
        )
        return by_chosen - by_rejected

    assert slope(low) < 0 < slope(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize(
    ("method", "margin"),
    [
        # The policy chooses as the labels do: odds of 9 to 1.
        (EXOPair(EXOPairConfig(beta=0.5, epsilon=0.1)), 2 * math.log(9.0)),
        # With rewards r and -r the slope is 2 sigmoid(r) - 3/2: r is log 3.
        (NCAPair(NCAPairConfig(beta=0.5)), 4 * math.log(3.0)),
        (SPPOHard(SPPOHardConfig(beta=0.25)), 4.0),
    ],
    ids=["exo_pair", "nca_pair", "sppo_hard"],
)
def test_some_losses_have_enough_at_a_finite_margin(method: PreferenceMethod, margin: float) -> None:
    assert margin_without_pull(method, 0.1, 40.0) == pytest.approx(margin, rel=1e-9)


def test_apo_down_lowers_the_chosen_answer_too_and_the_rejected_one_more() -> None:
    _, by_chosen, by_rejected = loss_and_slopes(
        APODown(APODownConfig(beta=0.5)), pairs(-19.0, -19.5, -20.0, -20.0)
    )
    start = loss_and_slopes(APODown(APODownConfig(beta=0.5)), pairs(-20.0, -20.0, -20.0, -20.0))
    assert start[1] == pytest.approx(0.0, abs=1e-15)
    assert start[2] > 0
    assert by_rejected > 0
    _, far_chosen, _ = loss_and_slopes(APODown(APODownConfig(beta=0.5)), pairs(-19.0, -25.0, -20.0, -20.0))
    assert far_chosen > 0
    assert by_chosen < 0


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.105, 1.0])
def test_discopop_turns_a_pair_around_that_starts_at_margin_0_where_tau_is_small(tau: float) -> None:
    start = pairs(-20.0, -10.0, -20.0, -10.0)
    _, by_chosen, _ = loss_and_slopes(DiscoPOP(DiscoPOPConfig(beta=0.1, tau=tau)), start)
    # d/dx at 0: the blend moves from log 2 to 1 at rate 1 / (4 tau), and either half of it falls.
    assert by_chosen == pytest.approx(0.1 * ((1 - math.log(2)) / (4 * tau) - 0.25 - 0.5), rel=1e-9)
    assert (by_chosen > 0) == (tau < (1 - math.log(2)) / 3)


def test_hypo_is_dpo_where_the_reference_ranks_the_pair_rightly() -> None:
    forward = pairs(-16.0, -12.0, -10.0, -20.0)
    control = HyPO().control(HyPO().evidence(forward))
    expected = METHODS["dpo"]().losses(forward, control)
    assert HyPO().losses(forward, control).tolist() == expected.tolist()


def test_alpha_po_without_alpha_is_simpo_and_tends_to_it() -> None:
    simpo = loss_and_slopes(SimPO(SimPOConfig(beta=2.0, gamma_beta_ratio=0.3)), pair())

    def alpha_po(alpha: float) -> tuple[float, float, float]:
        return loss_and_slopes(AlphaPO(AlphaPOConfig(beta=2.0, alpha=alpha, gamma_beta_ratio=0.3)), pair())

    assert alpha_po(0.0) == simpo
    assert alpha_po(1e-7) == pytest.approx(simpo, rel=1e-5)


def test_alpha_po_reads_no_reference() -> None:
    assert not AlphaPO().needs.reference
    moved = pairs(-16.0, -12.0, -999.0, 5.0)
    assert loss_and_slopes(AlphaPO(), moved) == loss_and_slopes(AlphaPO(), pair())


def test_chi_po_with_a_small_beta_keeps_the_ratio_part_that_dpo_has_not() -> None:
    # Log-ratios of 0: z is 1 on both sides, and the slope twice DPO's.
    start = pairs(-20.0, -10.0, -20.0, -10.0)
    _, by_chosen, by_rejected = loss_and_slopes(ChiPO(ChiPOConfig(beta=0.1)), start)
    assert by_chosen == pytest.approx(-0.1 * 2 * 0.5, rel=1e-12)
    assert by_rejected == pytest.approx(0.1 * 2 * 0.5, rel=1e-12)


@pytest.mark.parametrize("logratio", [-3000.0, -300.0, 300.0, 3000.0])
@pytest.mark.parametrize("name", WORKED)
def test_far_log_ratios_leave_numbers_in_float32(name: str, logratio: float) -> None:
    method = METHODS[WORKED[name][0].name]()
    chosen, rejected = (torch.tensor([-4000.0 + sign * logratio]).requires_grad_() for sign in (1, -1))
    reference, length = torch.tensor([-4000.0]), torch.tensor([400])
    forward = PairForward(chosen, rejected, reference, reference, length, length)
    loss = method.losses(forward, method.control(method.evidence(forward)))
    loss.sum().backward()
    assert math.isfinite(loss.item())
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert math.isfinite(chosen.grad.item())
    assert math.isfinite(rejected.grad.item())


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: EXOPairConfig(epsilon=0.0), r"epsilon must lie in \(0, 0\.5\), got 0"),
    (lambda: DiscoPOPConfig(tau=1.5), r"tau must lie in \(0, 1\], got 1\.5"),
    (lambda: ChiPOConfig(max_reward=0.0), "max_reward must be greater than 0, got 0"),
    (lambda: ChiPOConfig(max_logratio=100.0), r"max_logratio must lie in \(0, 80\], got 100"),
    (lambda: AlphaPOConfig(alpha=9.0), r"alpha must lie in \[-5, 5\], got 9"),
    (lambda: NCAPairConfig(beta=0.0), "beta must be greater than 0, got 0"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
