"""What every preference method must do, run over the whole table: a new method is held to it by its entry."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dynamic_dpo.errors import CheckpointError, ConfigError
from dynamic_dpo.methods import (
    AOT,
    DPO,
    IPO,
    METHODS,
    SFT,
    WPO,
    AlphaDPO,
    AlphaDPOConfig,
    AlphaPO,
    AlphaPOConfig,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    BetaDPO,
    BetaDPOConfig,
    ChiPO,
    ChiPOConfig,
    Control,
    DiscoPOP,
    DiscoPOPConfig,
    DPOMethodConfig,
    DPONorm,
    DrDPO,
    EpsilonDPO,
    EpsilonDPOConfig,
    EXOPair,
    Hinge,
    HyPO,
    IPOConfig,
    NCAPair,
    PairForward,
    PreferenceMethod,
    Risk,
    RiskConfig,
    RobustConfig,
    Schedule,
    ScheduleConfig,
    SimPO,
    SimPOConfig,
    SPPOHard,
    WPOConfig,
)
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig

Maker = Callable[[], PreferenceMethod]
Formula = Callable[[PairForward], torch.Tensor]

# Every method as it comes, and settings that pass through each phase within a few updates.
CASES: dict[str, Maker] = {
    **METHODS,
    "dpo-smoothed": lambda: DPO(DPOMethodConfig(label_smoothing=0.1)),
    "risk-paper-quick": lambda: Risk(RiskConfig(warmup_steps=3, alpha=0.1)),
    "risk-exact": lambda: Risk(
        RiskConfig(mode="exact", warmup_steps=3, alpha=0.1, window_multiple=2), pairs_per_update=8
    ),
    "risk-exact-drawn-rank": lambda: Risk(
        RiskConfig(mode="exact", delta=0.1234567, warmup_steps=3, window_multiple=2), pairs_per_update=8
    ),
    "risk-rm": lambda: Risk(RiskConfig(mode="rm", warmup_steps=3, alpha=0.1), pairs_per_update=8),
    "risk-target": lambda: Risk(
        RiskConfig(mode="target", margin_budget=0.5, warmup_steps=3, gain_i=0.1, beta_min=1e-6),
        pairs_per_update=8,
    ),
    "risk-monitored": lambda: Risk(
        RiskConfig(mode="exact", warmup_steps=3, window_multiple=2, monitor="report", monitor_threshold=10.0),
        pairs_per_update=8,
    ),
    "schedule-moving": lambda: Schedule(ScheduleConfig(drift_per_1000=50.0, warmup_steps=3)),
    "ipo-summed": lambda: IPO(IPOConfig(length_normalised=False)),
    "wpo-clamped": lambda: WPO(WPOConfig(max_weight=1.0)),
    "beta_dpo-half": lambda: BetaDPO(BetaDPOConfig(keep_share=0.5, gain=5.0), scope="step"),
    "epsilon_dpo-large-steps": lambda: EpsilonDPO(EpsilonDPOConfig(epsilon=0.5)),
    "alpha_dpo-adapting": lambda: AlphaDPO(AlphaDPOConfig(alpha=0.5)),
    "alpha_dpo-per-token": lambda: AlphaDPO(AlphaDPOConfig(alpha=0.5, length_normalised=True)),
    "dpo-adjusted": lambda: Adjusted(
        DPO(), ObjectiveConfig(nll_weight=0.5, f_divergence="js_divergence", use_weighting=True, ld_alpha=0.3)
    ),
    "ipo-with-others": lambda: Adjusted(
        IPO(), ObjectiveConfig(weight=0.8), [(SFT(), 0.2), (AOTUnpaired(), 0.5), (DrDPO(), 0.1)]
    ),
    "risk-with-others": lambda: Risk(
        RiskConfig(warmup_steps=3, alpha=0.1),
        loss=Adjusted(DPO(), ObjectiveConfig(f_divergence="forward_kl"), [(SFT(), 0.2), (Hinge(), 0.5)]),
    ),
    "beta_dpo-adjusted": lambda: Adjusted(BetaDPO(scope="step"), ObjectiveConfig(nll_weight=0.5)),
    "risk-with-adjusted": lambda: Risk(
        RiskConfig(warmup_steps=3, alpha=0.1),
        loss=Adjusted(Hinge(), ObjectiveConfig(f_divergence="alpha_divergence", f_alpha=0.3)),
    ),
    # A controller with every loss it can steer.
    **{
        f"risk-with-{loss.name}": lambda loss=loss: Risk(  # type: ignore[misc]
            RiskConfig(warmup_steps=3, alpha=0.1), loss=loss()
        )
        for loss in METHODS.values()
        if not loss.why_not_steered and loss is not DPO
    },
}


def plain_dpo(beta: float) -> Formula:
    return lambda forward: -F.logsigmoid(beta * forward.margins)


def divergence(q: torch.Tensor, epsilon: float) -> torch.Tensor:
    return q * torch.log(q / (1 - epsilon)) + (1 - q) * torch.log((1 - q) / epsilon)


def in_order_of(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """For each value the one of the others that has its rank."""
    return others.sort().values[values.argsort().argsort()]


def policy_difference(forward: PairForward) -> torch.Tensor:
    return forward.policy_chosen_logps - forward.policy_rejected_logps


# What a method states of itself: the settings under which it is plain DPO.
NEUTRAL: list[tuple[str, Maker, Formula]] = [
    (name, lambda method=method: method(method.neutral), plain_dpo(method(method.neutral).beta))  # type: ignore[misc]
    for name, method in METHODS.items()
    if method.neutral is not None
]

# Further settings that make plain DPO, and methods that have another formula which can be read at a glance.
# Completions have 10 tokens, and either log-ratio is half of the margin.
FORMULAS: list[tuple[str, Maker, Formula]] = [
    ("risk-rm", lambda: Risk(RiskConfig(alpha=0.0, warmup_steps=1, mode="rm")), plain_dpo(0.1)),
    (
        "risk-target",
        lambda: Risk(RiskConfig(gain_p=0.0, gain_i=0.0, warmup_steps=1, mode="target", margin_budget=0.0)),
        plain_dpo(0.1),
    ),
    (
        "risk-exact",
        lambda: Risk(
            RiskConfig(alpha=0.0, warmup_steps=1, mode="exact", window_multiple=2), pairs_per_update=8
        ),
        plain_dpo(0.1),
    ),
    (
        "risk-with-hinge",
        lambda: Risk(RiskConfig(alpha=0.0, warmup_steps=1), loss=Hinge()),
        lambda forward: torch.relu(1 - 0.1 * forward.margins),
    ),
    ("ipo", IPO, lambda forward: (forward.margins / 10 - 5.0) ** 2),
    (
        "ipo-summed",
        lambda: IPO(IPOConfig(length_normalised=False)),
        lambda forward: (forward.margins - 5.0) ** 2,
    ),
    ("hinge", Hinge, lambda forward: torch.relu(1 - 0.1 * forward.margins)),
    (
        "simpo",
        lambda: SimPO(SimPOConfig(beta=1.0, gamma_beta_ratio=0.0)),
        lambda forward: -F.logsigmoid(policy_difference(forward) / 10),
    ),
    (
        "wpo",
        WPO,
        lambda forward: torch.exp(forward.statistics["aligned_logps"].sum(1) / 10) * plain_dpo(0.1)(forward),
    ),
    (
        "alpha_dpo",
        lambda: AlphaDPO(AlphaDPOConfig(alpha=0.0, gamma=0.0)),
        lambda forward: -F.logsigmoid(0.1 * policy_difference(forward)),
    ),
    ("dpo_norm", DPONorm, lambda forward: -F.logsigmoid(0.5 * forward.margins)),
    ("exo_pair", EXOPair, lambda forward: divergence(torch.sigmoid(0.1 * forward.margins), 1e-3)),
    (
        "nca_pair",
        NCAPair,
        lambda forward: (
            F.softplus(-0.01 * forward.chosen_logratios)
            + F.softplus(0.01 * forward.chosen_logratios) / 2
            + F.softplus(0.01 * forward.rejected_logratios) / 2
        ),
    ),
    ("bco_pair", BCOPair, lambda forward: 2 * F.softplus(-0.05 * forward.margins)),
    ("sppo_hard", SPPOHard, lambda forward: 2 * (forward.margins / 2 - 500.0) ** 2),
    ("apo_zero", APOZero, lambda forward: 2 * torch.sigmoid(-0.05 * forward.margins)),
    (
        "apo_down",
        APODown,
        lambda forward: (
            torch.sigmoid(0.1 * forward.chosen_logratios) + 1 - torch.sigmoid(0.1 * forward.margins)
        ),
    ),
    (
        "discopop",
        lambda: DiscoPOP(DiscoPOPConfig(tau=1.0)),
        lambda forward: (
            torch.sigmoid(-0.05 * forward.margins) * F.softplus(-0.05 * forward.margins)
            + torch.sigmoid(0.05 * forward.margins) * torch.exp(-0.05 * forward.margins)
        ),
    ),
    (
        "chi_po",
        lambda: ChiPO(ChiPOConfig(beta=0.01)),
        lambda forward: F.softplus(
            -0.01
            * (torch.exp(forward.chosen_logratios) - torch.exp(forward.rejected_logratios) + forward.margins)
        ),
    ),
    (
        "alpha_po",
        lambda: AlphaPO(AlphaPOConfig(beta=1.0, alpha=1.0, gamma_beta_ratio=0.0)),
        lambda forward: F.softplus(
            torch.exp(-forward.policy_chosen_logps / 10) - torch.exp(-forward.policy_rejected_logps / 10)
        ),
    ),
    ("hypo", HyPO, plain_dpo(0.1)),
    # The reference has one difference for all pairs, so that ranks decide nothing.
    ("aot", AOT, plain_dpo(0.1)),
    (
        "aot_unpaired",
        AOTUnpaired,
        lambda forward: F.softplus(
            -0.1
            * (forward.chosen_logratios - in_order_of(forward.chosen_logratios, forward.rejected_logratios))
        ),
    ),
    (
        "dr_dpo",
        DrDPO,
        lambda forward: -torch.exp(-plain_dpo(0.1)(forward)).mean().log().expand(len(forward.margins)),
    ),
    ("sft", SFT, lambda forward: -forward.policy_chosen_logps / 10),
]

# Methods of this package; each is held to a formula below. A further one states `neutral` where it has such settings.
WITH_FORMULA = {
    "dpo", "risk", "schedule", "robust", "ipo", "hinge", "simpo", "wpo", "beta_dpo", "epsilon_dpo", "alpha_dpo",
    "dpo_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "chi_po",
    "alpha_po", "hypo", "sft", "aot", "aot_unpaired", "dr_dpo",
}  # fmt: skip

STATISTICS = sorted(
    {statistic.name for method in METHODS.values() for statistic in method().needs.statistics}
)


@pytest.fixture(params=CASES, ids=str)
def make(request: pytest.FixtureRequest) -> Maker:
    return CASES[request.param]


def forward_of(margins: torch.Tensor, *, reference: float = -30.0) -> PairForward:
    """Pairs with the given margins, half of each in either log-ratio, and the policy as a leaf with gradient.

    Statistics differ from pair to pair and depend on the pair alone.
    """
    ref = torch.full_like(margins, reference)
    length = torch.full(margins.shape, 10)
    chosen, rejected = (ref + margins / 2).requires_grad_(), (ref - margins / 2).requires_grad_()
    statistics = {
        name: torch.stack([torch.sin(margins + k), torch.cos(2 * margins + k)], dim=1)
        for k, name in enumerate(STATISTICS)
    }
    return PairForward(chosen, rejected, ref, ref, length, length, statistics)


def gradients(forward: PairForward) -> list[torch.Tensor]:
    """The gradients of both log-probabilities; zeros where the loss does not read the one."""
    leaves = (forward.policy_chosen_logps, forward.policy_rejected_logps)
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def batch(number: int, n: int = 8) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(number)) + 0.02 * number


def feed(method: PreferenceMethod, numbers: range) -> list[tuple[dict[str, float], float]]:
    return [(method.observe(batch(k)), method.beta) for k in numbers]


def state_text(method: PreferenceMethod) -> str:
    return json.dumps(method.state_dict(), allow_nan=False, sort_keys=True)


def losses_of(method: PreferenceMethod, forward: PairForward) -> tuple[torch.Tensor, Control]:
    control = method.control(method.evidence(forward))
    if method.needs.batch_evidence:
        control = method.couple(forward.detached(), control)
    return method.losses(forward, control), control


def test_the_table_names_every_method_by_its_own_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_shapes_are_as_promised(make: Maker) -> None:
    method, forward = make(), forward_of(batch(0))
    losses, control = losses_of(method, forward)
    assert method.evidence(forward).shape == losses.shape == control.weight.shape == (8,)
    assert control.beta.shape in {(), (8,)}
    assert method.scope in {"micro", "step"}
    assert method.summary()["name"] == method.name


def test_evidence_and_control_are_detached(make: Maker) -> None:
    method, forward = make(), forward_of(batch(0))
    evidence = method.evidence(forward)
    control = method.control(evidence)
    assert not evidence.requires_grad
    assert not control.beta.requires_grad
    assert not control.weight.requires_grad
    assert control.offset is None or not control.offset.requires_grad
    assert method.losses(forward, control).requires_grad


@pytest.mark.parametrize(
    "margins",
    [[1000.0, -1000.0], [-1000.0], [0.0], [0.0] * 8, [5.0] * 3, [1e-30, -1e-30]],
    ids=["±1000", "one pair", "one zero", "all zero", "ties", "denormal"],
)
def test_losses_and_gradients_are_finite(make: Maker, margins: list[float]) -> None:
    method, forward = make(), forward_of(torch.tensor(margins))
    losses, _ = losses_of(method, forward)
    losses.sum().backward()
    for values in (losses, *gradients(forward)):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("margins", [[1000.0, -1000.0, 3.0], [0.0] * 8, [2.0]])
def test_extreme_evidence_leaves_a_positive_finite_beta(make: Maker, margins: list[float]) -> None:
    method = make()
    for _ in range(150):
        method.observe(torch.tensor(margins))
    assert math.isfinite(method.beta)
    assert method.beta > 0
    state_text(method)


# The first is made for chosen answers that the policy is to leave behind as well; the second turns around margin 0.
NOT_MONOTONE = {"apo_down", "discopop"}


def test_no_loss_is_lowered_by_a_worse_answer_of_either_kind(make: Maker) -> None:
    if getattr(make(), "loss", make()).name in NOT_MONOTONE:
        pytest.skip("this loss is no monotone one by its formula")
    forward = forward_of(torch.linspace(-4, 4, 9))
    losses, _ = losses_of(make(), forward)
    losses.sum().backward()
    chosen, rejected = gradients(forward)
    assert (chosen < 0).any()
    assert (chosen <= 0).all()
    assert (rejected >= 0).all()


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.of_differences and method.reads_margins]
)
def test_a_loss_of_differences_does_not_see_what_both_log_ratios_share(name: str) -> None:
    # Another divergence than KL leaves both with a term of the prompt, which has to drop out.
    plain = forward_of(batch(5).double() * 3)
    shifted = replace(
        plain,
        policy_chosen_logps=plain.policy_chosen_logps + 2.5,
        policy_rejected_logps=plain.policy_rejected_logps + 2.5,
    )
    torch.testing.assert_close(
        losses_of(METHODS[name](), shifted)[0], losses_of(METHODS[name](), plain)[0], rtol=1e-12, atol=1e-15
    )


def test_a_loss_that_reads_no_margin_says_so() -> None:
    plain = forward_of(batch(5))
    for method in METHODS.values():
        moved = replace(plain, ref_chosen_logps=plain.ref_chosen_logps - 3.0)
        moved = replace(moved, policy_rejected_logps=plain.policy_rejected_logps - 5.0)
        sees = not torch.equal(losses_of(method(), moved)[0], losses_of(method(), plain)[0])
        assert sees == method.reads_margins, method.name


def test_a_swapped_pair_negates_its_margin() -> None:
    pair = forward_of(batch(3))
    swapped = PairForward(
        pair.policy_rejected_logps,
        pair.policy_chosen_logps,
        pair.ref_rejected_logps,
        pair.ref_chosen_logps,
        pair.rejected_lengths,
        pair.chosen_lengths,
    )
    assert torch.equal(swapped.margins, -pair.margins)


def test_deciding_and_losing_change_no_state(make: Maker) -> None:
    method = make()
    feed(method, range(6))
    before, beta = state_text(method), method.beta
    for k in range(50):
        losses_of(method, forward_of(batch(k)))
    assert state_text(method) == before
    assert method.beta == beta


def test_control_is_the_same_for_a_pair_whatever_the_cut(make: Maker) -> None:
    method = make()
    feed(method, range(6))
    if method.needs.batch_evidence:
        pytest.skip("this method decides on whole batches")
    whole, _ = losses_of(method, forward_of(batch(7)))
    parts = [losses_of(method, forward_of(part))[0] for part in batch(7).split(3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("phase", [0, 1, 2, 3, 4, 5, 7, 12])
def test_state_survives_json_and_goes_on_as_if_nothing_had_happened(make: Maker, phase: int) -> None:
    uninterrupted, first, second = make(), make(), make()
    expected = feed(uninterrupted, range(20))
    feed(first, range(phase))
    second.load_state_dict(json.loads(state_text(first)))
    assert state_text(second) == state_text(first)
    assert second.beta == first.beta
    assert feed(second, range(phase, 20)) == expected[phase:]
    assert state_text(second) == state_text(uninterrupted)


@pytest.mark.parametrize("phase", [119, 120, 121])
@pytest.mark.parametrize("name", METHODS)
def test_default_settings_resume_at_the_end_of_their_warm_up(name: str, phase: int) -> None:
    uninterrupted, first, second = (METHODS[name]() for _ in range(3))
    expected = feed(uninterrupted, range(130))
    feed(first, range(phase))
    second.load_state_dict(json.loads(state_text(first)))
    assert feed(second, range(phase, 130)) == expected[phase:]


def test_loading_a_state_into_a_used_method_forgets_what_it_had(make: Maker) -> None:
    fresh, used = make(), make()
    feed(used, range(40))
    used.load_state_dict(json.loads(state_text(fresh)))
    assert feed(used, range(12)) == feed(fresh, range(12))


def test_another_methods_state_is_refused(make: Maker) -> None:
    method = make()
    if not method.state_dict():
        pytest.skip("a method without state has nothing to confuse")
    with pytest.raises(CheckpointError, match=r"resume with the settings|start a new run"):
        method.load_state_dict({**method.state_dict(), "method": "another"})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("phase", [0, 2, 3, 12])
def test_non_finite_evidence_never_enters_the_state(make: Maker, phase: int, bad: float) -> None:
    clean, poisoned = make(), make()
    for method in (clean, poisoned):
        feed(method, range(phase))
    margins = batch(99)
    margins[[1, 6]] = bad
    expected = clean.observe(margins[torch.isfinite(margins)])
    assert poisoned.observe(margins) == expected
    assert state_text(poisoned) == state_text(clean)


@pytest.mark.parametrize("phase", [0, 3, 12])
def test_evidence_without_a_finite_value_changes_nothing(make: Maker, phase: int) -> None:
    method = make()
    feed(method, range(phase))
    before = state_text(method)
    for margins in (torch.full((8,), math.nan), torch.tensor([math.inf]), torch.zeros(0)):
        method.observe(margins)
    assert state_text(method) == before


def test_readings_are_finite_numbers(make: Maker) -> None:
    for reading, beta in feed(make(), range(15)):
        assert all(math.isfinite(value) for value in reading.values())
        assert reading.get("risk/beta", beta) == beta


def test_every_method_of_the_package_is_held_to_a_formula() -> None:
    assert {make().name for _, make, _ in NEUTRAL + FORMULAS} >= WITH_FORMULA
    # The beta of the formula is the method's own; here is what it has to be.
    betas = {name: make().beta for name, make, _ in NEUTRAL if name in WITH_FORMULA}
    assert betas == {**dict.fromkeys(betas, 0.1), "epsilon_dpo": 0.01}


@pytest.mark.parametrize(
    ("make", "formula"),
    [case[1:] for case in NEUTRAL + FORMULAS],
    ids=[name for name, *_ in NEUTRAL + FORMULAS],
)
def test_neutral_settings_are_plain_dpo_or_the_methods_own_formula(make: Maker, formula: Formula) -> None:
    method = make()
    beta = method.beta
    feed(method, range(12))
    ours, theirs = forward_of(batch(1) * 20), forward_of(batch(1) * 20)
    losses, expected = losses_of(method, ours)[0], formula(theirs)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(
        ours.policy_chosen_logps.grad, theirs.policy_chosen_logps.grad, rtol=1e-6, atol=1e-9
    )
    assert method.beta == pytest.approx(beta, rel=1e-7)


def numbers_of(control: Control) -> list[torch.Tensor]:
    offset = [] if control.offset is None else [control.offset]
    return [control.beta, control.weight, *offset, *(n for part in control.parts for n in numbers_of(part))]


def test_every_rank_decides_alike_whatever_its_own_random_state(make: Maker) -> None:
    here, there = make(), make()
    for method, seed in ((here, 1), (there, 2)):
        torch.manual_seed(seed)
        random.seed(seed)
        feed(method, range(6))
    for number in range(7, 12):
        ours, theirs = (
            losses_of(here, forward_of(batch(number)))[1],
            losses_of(there, forward_of(batch(number)))[1],
        )
        for mine, other in zip(numbers_of(ours), numbers_of(theirs), strict=True):
            assert torch.equal(mine, other)


def test_evaluation_moves_neither_the_state_nor_a_random_stream(make: Maker) -> None:
    method = make()
    feed(method, range(6))
    before = state_text(method), torch.get_rng_state().tolist(), random.getstate()
    forward = forward_of(batch(7))
    control = method.control_in_evaluation(method.evidence(forward))
    assert torch.isfinite(method.losses(forward, control)).all()
    assert (state_text(method), torch.get_rng_state().tolist(), random.getstate()) == before


def test_an_evaluated_pair_does_not_depend_on_the_cut(make: Maker) -> None:
    method = make()
    feed(method, range(6))

    def evaluated(margins: torch.Tensor) -> torch.Tensor:
        forward = forward_of(margins)
        return method.losses(forward, method.control_in_evaluation(method.evidence(forward)))

    assert torch.equal(torch.cat([evaluated(part) for part in batch(7).split(3)]), evaluated(batch(7)))


def test_label_smoothing_mixes_the_loss_of_the_swapped_pair() -> None:
    margins = torch.tensor([2.0], dtype=torch.float64)
    smoothed, _ = losses_of(DPO(DPOMethodConfig(beta=0.5, label_smoothing=0.1)), forward_of(margins))
    # beta h = 1: .9 log(1 + e^-1) + .1 log(1 + e)
    assert smoothed.item() == pytest.approx(
        0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e), rel=1e-12
    )
    for method in (Risk(label_smoothing=0.1), Schedule(label_smoothing=0.1)):
        same, _ = losses_of(method, forward_of(margins * 5))  # their beta is .1
        assert same.item() == pytest.approx(smoothed.item(), rel=1e-12)


def test_a_control_selects_its_pairs() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    index = torch.tensor([2, 0])
    shared = Control(torch.tensor(0.1), weight).select(index)
    assert (shared.beta.item(), shared.weight.tolist()) == (pytest.approx(0.1), [3.0, 1.0])
    assert Control(weight / 10, weight).select(index).beta.tolist() == pytest.approx([0.3, 0.1])
    assert shared.offset is None
    offset = Control(weight, weight, 2 * weight).select(index).offset
    assert offset is not None
    assert offset.tolist() == [6.0, 2.0]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("delta", 0.0, r"delta must lie in \(0, 1\), got 0.0"),
        ("delta", 1.0, r"delta must lie in \(0, 1\), got 1.0"),
        ("delta", math.nan, "delta must be a finite number, got nan"),
        ("beta_0", 0.0, "beta_0 must be greater than 0, got 0.0"),
        ("beta_0", math.nan, "beta_0 must be a finite number, got nan"),
        ("beta_0", 3.0, r"beta_max must be at least beta_0 \(3\), got 2.0"),
        ("beta_min", 2.5, r"beta_min must be at most beta_0 \(0.1\), got 2.5"),
        ("beta_max", 0.05, r"beta_max must be at least beta_0 \(0.1\), got 0.05"),
        ("beta_max", math.inf, "beta_max must be a finite number, got inf"),
        ("beta_min", -0.1, "beta_min must be at least 0, got -0.1"),
        ("momentum", -0.1, r"momentum must lie in \[0, 1\], got -0.1"),
        ("momentum", math.nan, "momentum must be a finite number, got nan"),
        ("alpha", -1.0, "alpha must be at least 0, got -1.0"),
        ("alpha", math.inf, "alpha must be a finite number, got inf"),
        ("gamma", 0.0, "gamma must be greater than 0, got 0.0"),
        ("alpha_scale", 0.0, "alpha_scale must be greater than 0, or 'auto', got 0.0"),
        ("warmup_steps", 0, "warmup_steps must be at least 1, got 0"),
        ("window_multiple", 1, "window_multiple must be at least 2, got 1"),
        ("mode", "papr", "mode must be one of 'paper', 'exact', 'rm', 'target', got 'papr'"),
        ("scope", "epoch", "scope must be one of 'micro', 'step', got 'epoch'"),
    ],
)
def test_risk_settings_out_of_range_are_refused(setting: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RiskConfig(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "setting", "value"),
    [
        (DPOMethodConfig, "beta", 0.0),
        (DPOMethodConfig, "beta", math.nan),
        (DPOMethodConfig, "label_smoothing", 0.5),
        (DPOMethodConfig, "label_smoothing", -0.1),
        (RobustConfig, "epsilon", 0.5),
        (IPOConfig, "beta", -1.0),
        (SimPOConfig, "gamma_beta_ratio", -0.5),
        (WPOConfig, "max_weight", 0.0),
        (BetaDPOConfig, "keep_share", 0.0),
        (BetaDPOConfig, "keep_share", 1.1),
        (BetaDPOConfig, "momentum", 1.0),
        (BetaDPOConfig, "gain", math.inf),
        (BetaDPOConfig, "seed", -1),
        (EpsilonDPOConfig, "epsilon", 1.0),
        (AlphaDPOConfig, "alpha", math.nan),
        (ScheduleConfig, "beta_0", -1.0),
        (ScheduleConfig, "beta_max", 0.05),
        (ScheduleConfig, "drift_per_1000", math.nan),
        (ScheduleConfig, "warmup_steps", -1),
        (ScheduleConfig, "scope", "epoch"),
    ],
)
def test_other_settings_out_of_range_are_refused(config: type, setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        config(**{setting: value})
