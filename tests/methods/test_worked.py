"""Losses and decisions of the methods, worked by hand in float64 from the formulas of their papers."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
import torch

from dynamic_dpo.methods import (
    IPO,
    WPO,
    AlphaDPO,
    AlphaDPOConfig,
    BetaDPO,
    BetaDPOConfig,
    EpsilonDPO,
    EpsilonDPOConfig,
    Hinge,
    HingeConfig,
    IPOConfig,
    PairForward,
    PreferenceMethod,
    Robust,
    RobustConfig,
    SimPO,
    SimPOConfig,
    WPOConfig,
)
from dynamic_dpo.methods.base import LogitChunk
from dynamic_dpo.methods.beta_dpo import draw_without_replacement
from dynamic_dpo.methods.epsilon_dpo import AWAY, TOWARDS, gain_of_moved_logits
from dynamic_dpo.methods.wpo import ALIGNED_LOGPS, aligned_logps


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# One pair: margin 4 - (-2) = 6 nats; 8 and 4 tokens; per token 4/8 + 2/4 = 1.
PAIR = PairForward(doubles(-16.0), doubles(-12.0), doubles(-20.0), doubles(-10.0), doubles(8.0), doubles(4.0))


def loss_of(method: PreferenceMethod, forward: PairForward) -> list[float]:
    losses: list[float] = method.losses(forward, method.control(method.evidence(forward))).tolist()
    return losses


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        (
            Robust(RobustConfig(beta=0.5, epsilon=0.2)),
            (0.8 * softplus(-3.0) - 0.2 * softplus(3.0)) / 0.6,
        ),
        (IPO(IPOConfig(beta=0.25)), (1.0 - 2.0) ** 2),
        (IPO(IPOConfig(beta=0.25, length_normalised=False)), (6.0 - 2.0) ** 2),
        (Hinge(HingeConfig(beta=0.1)), 0.4),
        (Hinge(HingeConfig(beta=0.2)), 0.0),
        # -16/8 + 12/4 = 1 nat a token ahead, half of it asked for.
        (SimPO(SimPOConfig(beta=2.0, gamma_beta_ratio=0.5)), softplus(-1.0)),
    ],
)
def test_a_pairs_loss_is_the_formulas(method: PreferenceMethod, loss: float) -> None:
    assert loss_of(method, PAIR) == [pytest.approx(loss, rel=1e-12)]


def test_simpo_neither_asks_for_a_reference_nor_reads_one() -> None:
    method = SimPO()
    assert not method.needs.reference
    moved = PairForward(*PAIR.__dict__.values())
    object.__setattr__(moved, "ref_chosen_logps", doubles(-999.0))
    assert loss_of(method, moved) == loss_of(method, PAIR)
    assert method.evidence(moved).tolist() == [1.0]


# ---- β-DPO ----


def test_beta_dpo_follows_the_margins_of_two_batches() -> None:
    method = BetaDPO(BetaDPOConfig(beta=0.1, gain=0.6, keep_share=0.8, momentum=0.9))
    margins = doubles(1.0, 2.0, 3.0, 6.0)  # mean 3, unbiased variance 14/3
    zeros, ones = torch.zeros_like(margins), torch.ones_like(margins)
    forward = PairForward(margins, zeros, zeros, zeros, ones, ones)

    # mu = .1 * 3, sigma = .1 * sqrt(14/3) = .216: the far margin 6 is the one of 4 left out, beta is
    # .1 (1 + .6 (2 - .3)).
    control = method.control(method.evidence(forward))
    assert control.beta.item() == pytest.approx(0.202, rel=1e-12)
    assert control.weight.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0.0], rel=1e-12)
    mean_loss = method.losses(forward, control).mean().item()
    expected = sum(softplus(-0.202 * h) for h in (1.0, 2.0, 3.0)) / 3
    assert mean_loss == pytest.approx(expected, rel=1e-12)

    reading = method.observe(margins)
    assert reading["beta_dpo/mean"] == pytest.approx(0.3, rel=1e-12)
    assert reading["beta_dpo/std"] == pytest.approx(0.1 * math.sqrt(14 / 3), rel=1e-12)
    assert reading["beta_dpo/kept"] == 3
    assert reading["beta_dpo/beta"] == method.beta == pytest.approx(0.202, rel=1e-12)

    # mu = .9 * .3 + .1 * 0, sigma = .9 * .216 + .1 * sqrt(2); one of two is kept.
    reading = method.observe(doubles(-1.0, 1.0))
    assert reading["beta_dpo/mean"] == pytest.approx(0.27, rel=1e-12)
    assert reading["beta_dpo/std"] == pytest.approx(0.09 * math.sqrt(14 / 3) + 0.1 * math.sqrt(2), rel=1e-12)
    assert method.beta == pytest.approx(0.1 * (1 + 0.6 * (1 - 0.27)), rel=1e-12)


def test_beta_dpo_has_a_smallest_beta_and_keeps_at_least_one_pair() -> None:
    method = BetaDPO(BetaDPOConfig(keep_share=0.1))
    control = method.control(doubles(-50.0, -60.0))
    assert control.beta.item() == pytest.approx(1e-3, rel=1e-12)
    assert sorted(control.weight.tolist()) == [0.0, 2.0]


def test_beta_dpo_leaves_a_non_finite_margin_out_of_the_draw() -> None:
    method = BetaDPO(BetaDPOConfig(keep_share=1.0))
    control = method.control(doubles(1.0, math.nan, 3.0, math.inf))
    assert control.weight.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert math.isfinite(control.beta.item())


def test_beta_dpo_draws_anew_each_update_and_alike_after_a_resume() -> None:
    margins = torch.linspace(-0.01, 0.01, 32)

    def drawn(method: BetaDPO, updates: int) -> list[list[float]]:
        seen = []
        for _ in range(updates):
            seen.append(method.control(margins).weight.tolist())
            method.observe(margins)
        return seen

    def settled(seed: int) -> BetaDPO:
        method = BetaDPO(BetaDPOConfig(seed=seed))
        for _ in range(30):  # the running spread starts at 0, where the draw is nearly decided
            method.observe(margins)
        return method

    whole, other_seed = settled(3), settled(4)
    expected = drawn(whole, 6)
    assert len({tuple(weights) for weights in expected}) == 6
    assert expected != drawn(other_seed, 6)
    first, second = settled(3), BetaDPO(BetaDPOConfig(seed=3))
    begun = drawn(first, 2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + drawn(second, 4) == expected


def test_draws_without_replacement_have_the_law_of_drawing_one_after_the_other() -> None:
    weights, draws = [3.0, 2.0, 1.0], random.Random(0)
    counts = Counter(
        tuple(draw_without_replacement([math.log(w) for w in weights], 2, draws)) for _ in range(20_000)
    )
    share = {pair: count / 20_000 for pair, count in counts.items()}
    assert share[0, 1] == pytest.approx(3 / 6 * 2 / 3 + 2 / 6 * 3 / 4, abs=0.012)  # .583
    assert share[0, 2] == pytest.approx(3 / 6 * 1 / 3 + 1 / 6 * 3 / 5, abs=0.012)  # .267
    assert share[1, 2] == pytest.approx(2 / 6 * 1 / 4 + 1 / 6 * 2 / 5, abs=0.012)  # .150


# ---- α-DPO ----


def test_alpha_dpo_asks_for_more_where_the_policy_has_left_the_reference() -> None:
    method = AlphaDPO(AlphaDPOConfig(beta=0.1, gamma=0.5, alpha=0.3))
    first = doubles(0.0, 2.0, 4.0)  # mean 2, std 2: the first batch is taken as it is
    control = method.control(first)
    assert control.offset is not None
    assert control.offset.tolist() == pytest.approx([0.2, 0.5, 0.8], rel=1e-12)
    method.observe(first)
    assert method.state_dict()["moments"] == [2.0, 2.0]

    second = doubles(1.0, 1.0, 4.0)  # mean 2, std sqrt(3)
    std = 0.9 * 2 + 0.1 * math.sqrt(3)
    control = method.control(second)
    assert control.offset is not None
    expected = [0.5 - 0.3 / std, 0.5 - 0.3 / std, 0.5 + 0.6 / std]
    assert control.offset.tolist() == pytest.approx(expected, rel=1e-12)

    # lp_c - lp_r = 2, whatever the reference says.
    chosen, rejected = doubles(-10.0, -10.0, -10.0), doubles(-12.0, -12.0, -12.0)
    ref_rejected = doubles(-11.0, -11.0, -8.0)
    forward = PairForward(chosen, rejected, chosen, ref_rejected, doubles(2, 2, 2), doubles(4, 4, 4))
    assert forward.margins.tolist() == second.tolist()
    losses = method.losses(forward, control).tolist()
    assert losses == pytest.approx([softplus(-0.1 * (2 - m)) for m in expected], rel=1e-12)


def test_alpha_dpo_per_token_divides_both_terms() -> None:
    method = AlphaDPO(AlphaDPOConfig(beta=2.0, gamma=0.5, alpha=0.3, length_normalised=True))
    assert method.evidence(PAIR).tolist() == [1.0]  # 4/8 + 2/4
    # A single pair: mean 1, spread 0, so the offset is gamma; -16/8 + 12/4 = 1.
    assert loss_of(method, PAIR) == [pytest.approx(softplus(-2.0 * 0.5), rel=1e-12)]


def test_alpha_dpo_without_alpha_asks_for_no_reference() -> None:
    assert not AlphaDPO().needs.reference
    assert not AlphaDPO().needs.batch_evidence
    adapting = AlphaDPO(AlphaDPOConfig(alpha=0.1)).needs
    assert adapting.reference
    assert adapting.batch_evidence


def test_alpha_dpo_evaluates_on_the_moments_of_training() -> None:
    method = AlphaDPO(AlphaDPOConfig(gamma=0.5, alpha=0.3))
    unseen = method.control_in_evaluation(doubles(100.0)).offset
    method.observe(doubles(0.0, 2.0, 4.0))
    offset = method.control_in_evaluation(doubles(6.0)).offset
    assert unseen is not None
    assert offset is not None
    assert unseen.tolist() == [0.5]
    assert offset.tolist() == pytest.approx([0.5 + 0.3 * 2], rel=1e-12)


# ---- ε-DPO ----

# Three tokens, policy p = (.2, .6, .2), uniform reference.
CHUNK = LogitChunk(
    torch.tensor([[0.0, math.log(3.0), 0.0]] * 2, dtype=torch.float64),
    torch.zeros(2, 3, dtype=torch.float64),
    torch.tensor([1, 0]),
    doubles(math.log(0.6), math.log(0.2)),
)


def test_moving_logits_away_from_the_reference_sharpens_the_policy() -> None:
    root = math.sqrt(3.0)
    # (1 + 1/2) log 3: weights 1, 3 sqrt(3), 1; (1 - 1/2) log 3: weights 1, sqrt(3), 1.
    away = [math.log(3 * root / (2 + 3 * root) / 0.6), math.log(1 / (2 + 3 * root) / 0.2)]
    towards = [math.log(root / (2 + root) / 0.6), math.log(1 / (2 + root) / 0.2)]
    assert gain_of_moved_logits(CHUNK, 0.5).tolist() == pytest.approx(away, rel=1e-12)
    assert gain_of_moved_logits(CHUNK, -0.5).tolist() == pytest.approx(towards, rel=1e-12)


def test_where_policy_and_reference_agree_nothing_moves_at_all() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)) * 10
    chunk = LogitChunk(logits, logits.clone(), torch.arange(50), torch.zeros(50))
    assert gain_of_moved_logits(chunk, 0.01).tolist() == [0.0] * 50


def test_without_the_references_logits_the_statistic_says_so() -> None:
    with pytest.raises(ValueError, match="ask for a live reference"):
        gain_of_moved_logits(CHUNK._replace(reference=None), 0.1)


def epsilon_forward(away: list[float], towards: list[float], chosen: torch.Tensor) -> PairForward:
    zeros, ones = torch.zeros_like(chosen), torch.ones_like(chosen)
    statistics = {AWAY: torch.zeros(len(chosen), 2), TOWARDS: torch.zeros(len(chosen), 2)}
    statistics[AWAY][:, 0] = torch.tensor(away)
    statistics[TOWARDS][:, 1] = -torch.tensor(towards)
    return PairForward(chosen, zeros, zeros, zeros, ones, ones, statistics)


def test_epsilon_dpo_steps_by_the_order_of_the_three_rankings() -> None:
    method = EpsilonDPO(EpsilonDPOConfig(beta=0.01, epsilon=0.01))
    #           r+ - r:   up    down  up   none  up
    #           r- - r:   down  up    up   down  down, but the margin is NaN
    forward = epsilon_forward(
        [1.0, -1.0, 1.0, 0.0, 1.0], [-1.0, 1.0, 1.0, -1.0, -1.0], doubles(5, 5, 5, 5, math.nan)
    )
    evidence = method.evidence(forward)
    assert evidence.tolist()[:4] == [1.0, -1.0, 0.0, 0.0]
    assert math.isnan(evidence[4])
    control = method.control(evidence[:4])
    assert control.beta.tolist() == pytest.approx([0.01 / 1.01, 0.01 / 0.99, 0.01, 0.01], rel=1e-12)
    assert method.observe(doubles(1.0, 1.0, 0.0, -1.0))["epsilon_dpo/mean_step"] == 0.25
    assert method.beta == pytest.approx(0.01 / 1.0025, rel=1e-12)  # .00997506
    assert method.observe(doubles(-1.0))["epsilon_dpo/beta"] == pytest.approx(0.01 / 1.0025 / 0.99, rel=1e-12)


def test_epsilon_dpo_moves_its_beta_once_an_optimizer_step() -> None:
    assert EpsilonDPO().scope == "step"
    assert EpsilonDPO().needs.live_reference


# ---- WPO ----


def test_wpo_weighs_a_token_against_what_the_policy_draws_on_average() -> None:
    # Σ p² = .04 + .36 + .04 = .44
    expected = [math.log(0.6 / 0.44), math.log(0.2 / 0.44)]
    assert aligned_logps(CHUNK).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("max_weight", "weight"), [(None, math.exp(0.3)), (1.0, 1.0)])
def test_wpo_weighs_the_loss_by_both_completions(max_weight: float | None, weight: float) -> None:
    # Means per token: 4/8 = .5 and -.8/4 = -.2.
    forward = PairForward(*PAIR.__dict__.values())
    object.__setattr__(
        forward, "statistics", {ALIGNED_LOGPS: torch.tensor([[4.0, -0.8]], dtype=torch.float64)}
    )
    method = WPO(WPOConfig(beta=0.1, max_weight=max_weight))
    assert loss_of(method, forward) == [pytest.approx(weight * softplus(-0.6), rel=1e-12)]
