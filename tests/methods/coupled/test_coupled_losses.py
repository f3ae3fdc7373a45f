"""Losses whose pairs hang together: worked, against the formula on the whole batch, and cut as the engine likes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import (
    AOT,
    DPO,
    AOTConfig,
    AOTUnpaired,
    AOTUnpairedConfig,
    DPOMethodConfig,
    DrDPO,
    DrDPOConfig,
    PairForward,
    PreferenceMethod,
    Risk,
    RiskConfig,
)
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

METHODS_HERE: dict[str, type[AOT] | type[AOTUnpaired] | type[DrDPO]] = {
    "aot": AOT,
    "aot_unpaired": AOTUnpaired,
    "dr_dpo": DrDPO,
}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def batch_of(policy: list[tuple[float, float]], reference: list[tuple[float, float]]) -> PairForward:
    sides = [
        torch.tensor(side, dtype=torch.float64)
        for pairs in (policy, reference)
        for side in zip(*pairs, strict=True)
    ]
    lengths = torch.full((len(policy),), 10)
    return PairForward(sides[0].requires_grad_(), sides[1].requires_grad_(), *sides[2:], lengths, lengths)


def random_batch(n: int, seed: int) -> PairForward:
    draws = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(4, n, generator=draws, dtype=torch.float64) - 30
    lengths = torch.full((n,), 10)
    return PairForward(values[0].requires_grad_(), values[1].requires_grad_(), *values[2:], lengths, lengths)


def losses_of(method: PreferenceMethod, forward: PairForward) -> torch.Tensor:
    control = method.couple(forward.detached(), method.control(method.evidence(forward)))
    return method.losses(forward, control)


# Differences of the policy 1, 5, -2 and of the reference 0, -1, 3.
THREE = [(-10.0, -11.0), (-10.0, -15.0), (-12.0, -10.0)], [(-10.0, -10.0), (-11.0, -10.0), (-10.0, -13.0)]


def test_aot_holds_differences_of_one_rank_against_each_other() -> None:
    losses = losses_of(AOT(AOTConfig(beta=0.5)), batch_of(*THREE))
    # Ranks 2, 3 and 1: against 0, 3 and -1.
    assert losses.tolist() == pytest.approx([softplus(-0.5), softplus(-1.0), softplus(0.5)], rel=1e-12)
    smoothed = losses_of(AOT(AOTConfig(beta=0.5, label_smoothing=0.1)), batch_of(*THREE))
    assert smoothed[0].item() == pytest.approx(0.9 * softplus(-0.5) + 0.1 * softplus(0.5), rel=1e-12)


def test_aot_unpaired_holds_chosen_against_rejected_log_ratios_of_one_rank() -> None:
    # Log-ratios of chosen answers 0, 1, -2, of rejected ones -1, -5, 3.
    losses = losses_of(AOTUnpaired(AOTUnpairedConfig(beta=0.5)), batch_of(*THREE))
    value = (softplus(-0.5 * (-2 + 5)) + softplus(-0.5 * (0 + 1)) + softplus(-0.5 * (1 - 3))) / 3
    assert losses.mean().item() == pytest.approx(value, rel=1e-12)


def test_dr_dpo_is_the_soft_minimum_of_dpos_losses() -> None:
    # Margins 1, 6 and -5.
    each = [softplus(-0.5 * margin) for margin in (1, 6, -5)]
    losses = losses_of(DrDPO(DrDPOConfig(beta=0.5, beta_prime=0.7)), batch_of(*THREE))
    value = -0.7 * math.log(sum(math.exp(-loss / 0.7) for loss in each) / 3)
    assert losses.tolist() == pytest.approx([value] * 3, rel=1e-12)
    assert value < sum(each) / 3


def whole_batch_loss(name: str, forward: PairForward) -> torch.Tensor:
    if name == "aot":
        policy = forward.policy_chosen_logps - forward.policy_rejected_logps
        reference = forward.ref_chosen_logps - forward.ref_rejected_logps
        return F.softplus(-0.1 * (policy.sort().values - reference.sort().values)).mean()
    if name == "aot_unpaired":
        chosen, rejected = forward.chosen_logratios.sort().values, forward.rejected_logratios.sort().values
        return F.softplus(-0.1 * (chosen - rejected)).mean()
    return -torch.exp(-F.softplus(-0.1 * forward.margins)).mean().log()


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("name", METHODS_HERE)
def test_value_and_gradient_are_those_of_the_formula_on_the_whole_batch(name: str, n: int) -> None:
    ours, theirs = random_batch(n, 3), random_batch(n, 3)
    loss, expected = losses_of(METHODS_HERE[name](), ours).mean(), whole_batch_loss(name, theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    for side in ("policy_chosen_logps", "policy_rejected_logps"):
        torch.testing.assert_close(getattr(ours, side).grad, getattr(theirs, side).grad, rtol=1e-12, atol=0)


def test_one_pair_alone_has_dpos_loss() -> None:
    alone = random_batch(1, 5)
    dpo = DPO(DPOMethodConfig(beta=0.1))
    plain = losses_of(dpo, alone).tolist()
    for method in METHODS_HERE.values():
        assert losses_of(method(), alone).tolist() == pytest.approx(plain, rel=1e-12)
        uncoupled = method()
        control = uncoupled.control_in_evaluation(uncoupled.evidence(alone))
        assert uncoupled.losses(alone, control).tolist() == pytest.approx(plain, rel=1e-12)


def test_a_large_beta_prime_is_plain_dpo() -> None:
    forward = random_batch(9, 2)
    mean = losses_of(DPO(), forward).mean().item()
    assert losses_of(DrDPO(DrDPOConfig(beta_prime=1e6)), forward).mean().item() == pytest.approx(
        mean, rel=1e-6
    )


def test_mislabelled_pairs_count_for_less() -> None:
    margins = [(-10.0, -20.0)] * 7 + [(-40.0, -10.0)]
    forward = batch_of(margins, [(-10.0, -10.0)] * 8)
    losses_of(DrDPO(DrDPOConfig(beta_prime=0.5)), forward).sum().backward()
    assert forward.policy_chosen_logps.grad is not None
    pull = forward.policy_chosen_logps.grad
    plain = random_batch(1, 0)
    assert abs(pull[7]) < 0.1 * abs(pull[0])
    assert plain.policy_chosen_logps.grad is None


def test_an_equal_values_batch_keeps_every_pair_once() -> None:
    forward = batch_of([(-10.0, -11.0)] * 4, [(-10.0, -10.0), (-10.0, -11.0), (-10.0, -12.0), (-10.0, -13.0)])
    losses = losses_of(AOT(AOTConfig(beta=1.0)), forward)
    assert sorted(losses.tolist()) == pytest.approx(sorted(softplus(-1.0 + k) for k in range(4)), rel=1e-12)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_controller_steers_it_and_an_objective_goes_through(name: str) -> None:
    loss = METHODS_HERE[name]()
    risk = Risk(RiskConfig(beta_0=0.3), loss=Adjusted(loss, ObjectiveConfig(nll_weight=1.0)))
    assert risk.needs.batch_evidence
    forward = random_batch(6, 1)
    config = type(loss.config)(beta=0.3)
    alone = losses_of(METHODS_HERE[name](config), forward)
    expected = alone - forward.policy_chosen_logps / 10
    torch.testing.assert_close(losses_of(risk, forward), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_wpos_weights_are_refused_where_pairs_are_sorted(name: str) -> None:
    with pytest.raises(ConfigError, match="whose pairs hang together"):
        Adjusted(METHODS_HERE[name](), ObjectiveConfig(use_weighting=True))


# ---- in real steps ----


def make(folder: Path, method: PreferenceMethod, budget: int) -> PreferenceTrainer:
    rows = random_pairs(16, seed=4)
    return PreferenceTrainer(
        model=tiny_llama(seed=1),
        ref_model=tiny_llama(seed=9),
        args=training_arguments(
            folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=3,
            learning_rate=1e-2,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=word_tokenizer(),
        method=method,
        engine=EngineConfig(tokens_per_microbatch=budget, reference_dir=str(folder.parent / "reference")),
    )


@pytest.mark.parametrize("scope", ["micro", "step"])
@pytest.mark.parametrize("name", METHODS_HERE)
def test_steps_do_not_depend_on_the_cut_and_are_the_formulas(tmp_path: Path, name: str, scope: str) -> None:
    seen: list[list[float]] = []
    for budget in (48, 4096):
        trainer = make(tmp_path / f"run{budget}", METHODS_HERE[name](scope=scope), budget)  # type: ignore[arg-type]
        if not seen:
            trainer.ensure_reference()
            pairs = next(iter(trainer.get_train_dataloader()))["pairs"]
            with torch.no_grad():
                forward = trainer.policy.forward(trainer.model, pairs, trainer.method.needs)
        trainer.train()
        seen.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    groups = [range(8)] if scope == "step" else [range(4), range(4, 8)]
    expected = [whole_batch_loss(name, select(forward, list(group))).item() for group in groups]
    assert seen[0][0] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def select(forward: PairForward, index: list[int]) -> PairForward:
    sides = (forward.policy_chosen_logps, forward.policy_rejected_logps, forward.ref_chosen_logps)
    rest = (forward.ref_rejected_logps, forward.chosen_lengths, forward.rejected_lengths)
    return PairForward(*(values[index] for values in (*sides, *rest)))


@pytest.mark.parametrize("name", METHODS_HERE)
def test_evaluation_takes_each_pair_by_itself(tmp_path: Path, name: str) -> None:
    coupled, plain = make(tmp_path / "a", METHODS_HERE[name](), 4096), make(tmp_path / "b", DPO(), 48)
    assert coupled.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
