"""Changed objectives: terms, weights and divergences worked in float64, tails in every layout, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import (
    DPO,
    IPO,
    METHODS,
    SFT,
    WPO,
    AOTUnpaired,
    AOTUnpairedConfig,
    BCOPair,
    BetaDPO,
    DPOMethodConfig,
    DrDPO,
    DrDPOConfig,
    EpsilonDPO,
    IPOConfig,
    Needs,
    PairForward,
    PreferenceMethod,
    Risk,
    RiskConfig,
    SFTMethodConfig,
)
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig, adjusted
from dynamic_dpo.methods.objective.divergences import score_of
from dynamic_dpo.methods.wpo import ALIGNED_LOGPS
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# One pair: log-ratios 4 and -2 nats; 8 and 4 tokens.
PAIR = PairForward(
    doubles(-16.0),
    doubles(-12.0),
    doubles(-20.0),
    doubles(-10.0),
    torch.tensor([8]),
    torch.tensor([4]),
    {ALIGNED_LOGPS: doubles(-0.8, -0.4).view(1, 2)},
)
HALF = DPO(DPOMethodConfig(beta=0.5))


def loss_of(method: PreferenceMethod, forward: PairForward = PAIR) -> float:
    return method.losses(forward, method.control(method.evidence(forward))).item()


# ---- divergences ----

# Each divergence's generator f, with f'(1) = 0 and f''(1) = 1.
GENERATORS: dict[str, Callable[[float], float]] = {
    "reverse_kl": lambda t: t * math.log(t) - t,
    "forward_kl": lambda t: t - math.log(t),
    "js_divergence": lambda t: 2 * (t * math.log(t) - (t + 1) * math.log((t + 1) / 2)),
    "alpha_divergence": lambda t: (t**0.3 - 0.3 * t) / (0.3 * (0.3 - 1)),
}


@pytest.mark.parametrize("logratio", [-2.0, -0.1, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_score_is_the_generators_derivative(name: str, logratio: float) -> None:
    t, step = math.exp(logratio), 1e-6
    generator = GENERATORS[name]
    derivative = (generator(t + step * t) - generator(t - step * t)) / (2 * step * t)
    # Jensen-Shannon's score is written for half of the generator whose curvature is 1.
    scale = 0.5 if name == "js_divergence" else 1.0
    score = score_of(doubles(logratio), name, 0.3).item()  # type: ignore[arg-type]
    assert score == pytest.approx(scale * derivative, rel=1e-6, abs=1e-9)


def test_alpha_divergence_joins_the_two_kls() -> None:
    values = doubles(-3.0, -0.2, 0.0, 0.7, 5.0)
    for alpha, other in ((1.0, "reverse_kl"), (0.0, "forward_kl")):
        ours = score_of(values, "alpha_divergence", alpha)
        assert torch.equal(ours, score_of(values, other, 0.5))  # type: ignore[arg-type]
    near = score_of(values, "alpha_divergence", 1.0 - 1e-5)
    torch.testing.assert_close(near, values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", GENERATORS)
def test_far_log_ratios_leave_numbers_and_gradients(name: str) -> None:
    values = torch.tensor([-3000.0, -90.0, 90.0, 3000.0], requires_grad=True)
    scores = score_of(values, name, 0.3)  # type: ignore[arg-type]
    scores.sum().backward()
    assert torch.isfinite(scores).all()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


# ---- the loss of a pair ----

WORKED: dict[str, tuple[PreferenceMethod, ObjectiveConfig, float]] = {
    "nll": (HALF, ObjectiveConfig(nll_weight=0.25), softplus(-3.0) + 0.25 * 16 / 8),
    "nll beside a loss without a reference": (
        METHODS["simpo"](),
        ObjectiveConfig(nll_weight=1.0),
        softplus(-(2.0 * (1.0 - 0.5))) + 2.0,
    ),
    "forward KL": (
        HALF,
        ObjectiveConfig(f_divergence="forward_kl"),
        softplus(-0.5 * ((1 - math.exp(-4.0)) - (1 - math.exp(2.0)))),
    ),
    "Jensen-Shannon, per token": (
        IPO(IPOConfig(beta=0.25)),
        ObjectiveConfig(f_divergence="js_divergence"),
        ((math.log(2) - softplus(-4.0)) / 8 - (math.log(2) - softplus(2.0)) / 4 - 2.0) ** 2,
    ),
    "alpha": (
        HALF,
        ObjectiveConfig(f_divergence="alpha_divergence", f_alpha=0.3),
        softplus(-0.5 * ((math.exp(-2.8) - 1) / -0.7 - (math.exp(1.4) - 1) / -0.7)),
    ),
    "weighting": (HALF, ObjectiveConfig(use_weighting=True), math.exp(-0.8 / 8 - 0.4 / 4) * softplus(-3.0)),
    # The likelihood is the answer's own, whatever stands in the place of log-ratios, and is weighted with its pair.
    "everything": (
        HALF,
        ObjectiveConfig(nll_weight=0.25, f_divergence="forward_kl", use_weighting=True),
        math.exp(-0.2) * (softplus(-0.5 * (math.exp(2.0) - math.exp(-4.0))) + 0.5),
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_a_pairs_loss_is_the_formulas(name: str) -> None:
    method, config, loss = WORKED[name]
    assert loss_of(Adjusted(method, config)) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", WORKED)
def test_a_controller_steers_it_at_the_controls_beta_and_learns_from_what_the_loss_acts_on(name: str) -> None:
    method, config, _ = WORKED[name]
    changed = Adjusted(method, config)
    risk = Risk(RiskConfig(beta_0=method.beta, beta_max=9.0), loss=Adjusted(method, config))
    assert loss_of(risk) == pytest.approx(loss_of(changed), rel=1e-12)
    assert risk.evidence(PAIR).tolist() == changed.evidence(PAIR).tolist()
    if config.f_divergence == "forward_kl":
        assert risk.evidence(PAIR).item() == pytest.approx(math.exp(2.0) - math.exp(-4.0), rel=1e-12)
    assert risk.summary()["loss"]["objective"]


def test_an_objective_that_changes_nothing_is_the_method_itself() -> None:
    assert adjusted(HALF, ObjectiveConfig()) is HALF


def test_whole_likelihoods_go_before_weighted_sums() -> None:
    weighted = replace(PAIR, whole_chosen_logps=doubles(-24.0))
    method = Adjusted(HALF, ObjectiveConfig(nll_weight=1.0, ld_alpha=0.5))
    assert loss_of(method, weighted) == pytest.approx(softplus(-3.0) + 3.0, rel=1e-12)
    assert loss_of(SFT(SFTMethodConfig(mean_over="answers")), weighted) == pytest.approx(3.0, rel=1e-12)
    assert method.needs == replace(HALF.needs, tail_weight=0.5)


def test_state_and_decisions_are_the_methods() -> None:
    method = Adjusted(BetaDPO(), ObjectiveConfig(nll_weight=0.5))
    method.observe(doubles(1.0, 2.0, 3.0))
    other = BetaDPO()
    other.observe(doubles(1.0, 2.0, 3.0))
    assert method.state_dict() == other.state_dict()
    assert method.beta == other.beta
    method.load_state_dict(BetaDPO().state_dict())
    assert method.beta == BetaDPO().beta


# ---- sums ----


def test_losses_add_up_with_their_weights_at_the_methods_beta() -> None:
    method = Adjusted(HALF, ObjectiveConfig(weight=0.8), [(BCOPair(), 0.2), (SFT(), 3.0)])
    bco = softplus(-2.0) + softplus(-1.0)
    assert loss_of(method) == pytest.approx(0.8 * softplus(-3.0) + 0.2 * bco + 3.0 * 16 / 8, rel=1e-12)
    assert method.needs.batch_lengths
    assert method.needs.reference
    steered = Risk(RiskConfig(beta_0=0.25), loss=method)
    halved = softplus(-1.0) + softplus(-0.5)
    assert loss_of(steered) == pytest.approx(0.8 * softplus(-1.5) + 0.2 * halved + 3.0 * 16 / 8, rel=1e-12)


def test_what_is_changed_is_changed_for_every_loss_of_a_sum() -> None:
    config = ObjectiveConfig(weight=2.0, f_divergence="forward_kl", use_weighting=True, nll_weight=0.5)
    method = Adjusted(HALF, config, [(IPO(IPOConfig(length_normalised=False)), 0.1)])
    margin = math.exp(2.0) - math.exp(-4.0)
    losses = 2.0 * softplus(-0.5 * margin) + 0.1 * (margin - 1.0) ** 2 + 0.5 * 2.0
    assert loss_of(method) == pytest.approx(math.exp(-0.2) * losses, rel=1e-12)


def test_losses_of_whole_batches_in_a_sum_see_the_batch_each_for_itself() -> None:
    draws = 3 * torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 30
    batch = PairForward(*draws, torch.full((7,), 10), torch.full((7,), 10))

    def mean_loss(method: PreferenceMethod) -> float:
        control = method.control(method.evidence(batch))
        if method.needs.batch_evidence:
            control = method.couple(batch, control)
        # In two parts, as two micro-batches take them.
        parts = [torch.arange(3), torch.arange(3, 7)]
        sides = list(vars(batch).values())[:6]
        losses = [
            method.losses(PairForward(*(side[part] for side in sides)), control.select(part))
            for part in parts
        ]
        return torch.cat(losses).mean().item()

    summed = Adjusted(HALF, ObjectiveConfig(), [(AOTUnpaired(), 0.3), (DrDPO(), 2.0)])
    own = {"beta": 0.5}
    expected = mean_loss(HALF) + 0.3 * mean_loss(AOTUnpaired(AOTUnpairedConfig(**own)))
    expected += 2.0 * mean_loss(DrDPO(DrDPOConfig(**own)))
    assert mean_loss(summed) == pytest.approx(expected, rel=1e-12)
    assert mean_loss(DrDPO(DrDPOConfig(**own))) != pytest.approx(mean_loss(HALF), rel=1e-3)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            (BetaDPO, 1.0),
            "beta_dpo cannot be added to that of dpo: it finds a beta of its own for every batch",
        ),
        ((Risk, 1.0), "risk cannot be added to that of dpo: it is itself a controller of beta"),
        ((SFT, 0.0), "the weight of sft must be a finite number above 0, got 0.0"),
        ((SFT, math.inf), "the weight of sft must be a finite number above 0, got inf"),
    ],
)
def test_what_cannot_be_added_is_refused(
    added: tuple[Callable[[], PreferenceMethod], float], message: str
) -> None:
    make, weight = added
    with pytest.raises(ConfigError, match=message):
        Adjusted(DPO(), ObjectiveConfig(), [(make(), weight)])


REFUSED: list[tuple[Callable[[], PreferenceMethod], dict[str, Any], str]] = [
    (BCOPair, {"f_divergence": "js_divergence"}, "f_divergence js_divergence does not go with bco_pair"),
    (SFT, {"f_divergence": "js_divergence"}, "f_divergence has no effect with sft"),
    (DPO, {"f_alpha": 0.2}, "f_alpha has no effect with f_divergence reverse_kl"),
    (SFT, {"ld_alpha": 0.5}, "ld_alpha has no effect with sft"),
    (EpsilonDPO, {"ld_alpha": 0.5}, "ld_alpha does not go with epsilon_dpo"),
    (WPO, {"use_weighting": True}, "use_weighting is what wpo does already"),
    (BetaDPO, {"use_weighting": True}, "use_weighting does not go with beta_dpo"),
    (DPO, {"ld_alpha": 1.5}, r"ld_alpha must lie in \[0, 1\]"),
    (DPO, {"nll_weight": -1.0}, "nll_weight must be at least 0"),
    (DPO, {"f_divergence": "kl"}, "f_divergence must be one of"),
]


@pytest.mark.parametrize(("method", "settings", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_does_not_go_together_is_refused(
    method: Callable[[], PreferenceMethod], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Adjusted(method(), ObjectiveConfig(**settings))


# ---- tails, in a real engine ----

ROWS = random_pairs(12, seed=5)
BATCH = PairBatch(ROWS["prompt_ids"], ROWS["chosen_ids"], ROWS["rejected_ids"], range(len(ROWS)))


def trainer_with(
    folder: Path, method: PreferenceMethod, layout: str = "auto", **settings: Any
) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=tiny_llama(seed=1),
        args=training_arguments(folder, learning_rate=1e-2, max_steps=2),
        train_dataset=ROWS,
        processing_class=word_tokenizer(),
        method=method,
        engine=EngineConfig(layout=layout, head_chunk=3, reference_dir=str(folder.parent / "reference")),  # type: ignore[arg-type]
        **settings,
    )


def token_logps(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("layout", ["plain", "shared", "packed"])
def test_tails_are_weighted_in_every_layout(tmp_path: Path, layout: str, weight: float) -> None:
    trainer = trainer_with(tmp_path / "run", DPO(), layout)
    scored = trainer.policy.scorer.score(trainer.model, BATCH, needs=Needs(tail_weight=weight))
    lengths = [(len(c), len(r)) for c, r in zip(BATCH.chosen, BATCH.rejected, strict=True)]
    assert {(c > r) - (c < r) for c, r in lengths} == {-1, 0, 1}
    expected, whole = [], []
    for row in ROWS:
        parts = [
            token_logps(trainer.model, row["prompt_ids"], row[side])
            for side in ("chosen_ids", "rejected_ids")
        ]
        shorter = min(map(len, parts))
        expected.append([part[:shorter].sum() + weight * part[shorter:].sum() for part in parts])
        whole.append(parts[0].sum())
    ours = torch.stack([scored.chosen, scored.rejected], 1)
    torch.testing.assert_close(
        ours.double(), torch.stack([torch.stack(pair) for pair in expected]), rtol=1e-5, atol=1e-4
    )
    assert scored.whole_chosen is not None
    torch.testing.assert_close(scored.whole_chosen.double(), torch.stack(whole), rtol=1e-5, atol=1e-4)
    assert scored.chosen_lengths.tolist() == [c for c, _ in lengths]


def test_without_weight_a_tail_has_no_gradient(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path / "run", DPO())
    pair = PairBatch([[5, 6]], [[7, 8, 9, 10]], [[11, 12]], [0])
    cut = PairBatch([[5, 6]], [[7, 8]], [[11, 12]], [0])
    gradients = []
    for batch in (pair, cut):
        trainer.model.zero_grad()
        scored = trainer.policy.scorer.score(trainer.model, batch, needs=Needs(tail_weight=0.0))
        (scored.chosen - scored.rejected).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_weighted_and_whole_references_are_kept_apart(tmp_path: Path) -> None:
    def references(ld_alpha: float | None, name: str) -> tuple[Dataset, int]:
        trainer = trainer_with(tmp_path / name, adjusted(DPO(), ObjectiveConfig(ld_alpha=ld_alpha)))
        trainer.train()
        return trainer.train_dataset, trainer.data.num_computed

    whole, computed = references(None, "whole")
    assert computed == len(ROWS)
    halved, computed = references(0.5, "halved")
    assert computed == len(ROWS)
    _, computed = references(0.5, "again")
    assert computed == 0
    uneven = [i for i, row in enumerate(ROWS) if len(row["chosen_ids"]) > len(row["rejected_ids"])]
    assert uneven
    assert all(halved[i]["ref_chosen_logps"] > whole[i]["ref_chosen_logps"] for i in uneven)


def test_a_run_starts_at_margin_0_trains_and_resumes_as_if_uninterrupted(tmp_path: Path) -> None:
    def run(name: str, **changed: Any) -> PreferenceTrainer:
        method = adjusted(DPO(), ObjectiveConfig(ld_alpha=0.4, nll_weight=0.1, use_weighting=True, **changed))
        return PreferenceTrainer(
            model=tiny_llama(seed=1),
            args=training_arguments(
                tmp_path / name, learning_rate=1e-2, max_steps=4, save_strategy="steps", save_steps=2
            ),
            train_dataset=ROWS,
            processing_class=word_tokenizer(),
            method=method,
            engine=EngineConfig(reference_dir=str(tmp_path / "reference")),
        )

    whole = run("run")
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    resumed = run("run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], weight), key
    summed = run("run")
    summed.whole_step.method = Adjusted(
        DPO(), ObjectiveConfig(), [(SFT(SFTMethodConfig(mean_over="answers")), 0.5)]
    )
    assert summed.run_state.identity["method.added.0.name"] == "sft"
    assert summed.run_state.identity["method.added.0.mean_over"] == "answers"
    other = run("run", f_divergence="forward_kl")
    with pytest.raises(Exception, match="f_divergence: the checkpoint has"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
