"""The cut does not matter: one step of 16 pairs has one gradient and one controller update, however it is cut."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import DPO, DPOMethodConfig, PreferenceMethod, Risk, RiskConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_gpt2, training_arguments, word_tokenizer

BETA = 0.3

# device batch, accumulation, token budget, layout
CUTS: dict[str, tuple[int, int, int, str]] = {
    "1 × 16": (16, 1, 4096, "auto"),
    "4 × 4": (4, 4, 4096, "auto"),
    "16 × 1": (1, 16, 4096, "auto"),
    "a pair at a time": (16, 1, 1, "auto"),
    "a few pairs": (16, 1, 64, "auto"),
    "uneven halves": (8, 2, 150, "auto"),
    "padded shared rows": (4, 4, 150, "shared"),
    "plain rows": (4, 4, 150, "plain"),
}


def float64_model(seed: int) -> Any:
    # GPT-2 is float64 throughout; Llama's norms round to float32 inside, whatever the model's dtype.
    return tiny_gpt2(seed=seed).to(torch.float64)


class Recording(PreferenceTrainer):
    """Keeps the pairs, the loss and the gradient of every step."""

    def training_step(
        self, model: Any, inputs: dict[str, PairBatch], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.steps = [*getattr(self, "steps", []), inputs["pairs"]]
        self.losses = [*getattr(self, "losses", []), float(loss)]
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss


def trained(folder: Path, cut: str, method: PreferenceMethod, *, steps: int, rows: Dataset) -> Recording:
    device_batch, accumulation, budget, layout = CUTS[cut]
    trainer = Recording(
        model=float64_model(0),
        ref_model=float64_model(1),
        args=training_arguments(
            folder,
            per_device_train_batch_size=device_batch,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            max_grad_norm=0.0,
            learning_rate=1e-3,
        ),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        method=method,
        engine=EngineConfig(
            layout=layout,  # type: ignore[arg-type]
            tokens_per_microbatch=budget,
            head_chunk=7 if budget < 4096 else 1024,
        ),
    )
    trainer.train()
    return trainer


def plain_torch_gradients(pairs: PairBatch) -> tuple[float, dict[str, torch.Tensor]]:
    """The step's mean loss and its gradient from a dozen lines that share nothing with the package."""
    policy, reference = float64_model(0), float64_model(1)

    def logp(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return -F.cross_entropy(logits, torch.tensor(completion), reduction="sum")

    losses = []
    for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
        with torch.no_grad():
            ref = logp(reference, prompt, chosen) - logp(reference, prompt, rejected)
        margin = logp(policy, prompt, chosen) - logp(policy, prompt, rejected) - ref
        losses.append(-F.logsigmoid(BETA * margin))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@functools.cache
def expected(folder: Path) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    trainer = trained(
        folder, "1 × 16", DPO(DPOMethodConfig(beta=BETA)), steps=1, rows=random_pairs(40, seed=2)
    )
    (pairs,) = trainer.steps
    assert len(pairs) == 16
    return *plain_torch_gradients(pairs), list(pairs.rows)


@pytest.mark.parametrize("cut", CUTS)
def test_a_step_of_sixteen_pairs_has_the_gradient_of_plain_torch(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cut: str
) -> None:
    loss, gradients, rows = expected(tmp_path_factory.getbasetemp() / "cut")
    trainer = trained(tmp_path, cut, DPO(DPOMethodConfig(beta=BETA)), steps=1, rows=random_pairs(40, seed=2))
    assert list(trainer.steps[0].rows) == rows
    assert trainer.losses == pytest.approx([loss], rel=1e-6)  # handed on in float32
    assert trainer.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float64
        assert (trainer.gradients[name] - gradient).norm() <= 1e-10 * gradient.norm(), name
    assert sum(float(g.norm()) for g in gradients.values()) > 0.1


def floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in floats(item)]
    if isinstance(value, list):
        return [x for item in value for x in floats(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_in_scope_step_the_controller_ends_in_one_state(tmp_path: Path, mode: str) -> None:
    states, betas, weights = {}, {}, {}
    for number, cut in enumerate(("1 × 16", "4 × 4", "a few pairs", "plain rows")):
        method = Risk(
            RiskConfig(mode=mode, scope="step", warmup_steps=2, alpha=0.3, window_multiple=2, delta=0.25),  # type: ignore[arg-type]
            pairs_per_update=16,
        )
        rows = random_pairs(80, seed=2)
        trainer = trained(tmp_path / str(number), cut, method, steps=5, rows=rows)
        states[cut], betas[cut] = json.loads(json.dumps(method.state_dict())), method.beta
        weights[cut] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    for cut in states:
        assert floats(states[cut]) == pytest.approx(floats(states["1 × 16"]), rel=1e-10, abs=1e-10)
        assert betas[cut] == pytest.approx(betas["1 × 16"], rel=1e-10)
        assert (weights[cut] - weights["1 × 16"]).norm() <= 1e-10 * weights[cut].norm()
    assert betas["1 × 16"] != 0.1
    assert states["1 × 16"]["updates"] == 5


def test_in_scope_micro_every_device_batch_is_an_update_and_uses_the_beta_before_it(tmp_path: Path) -> None:
    method = Risk(RiskConfig(scope="micro", warmup_steps=2, alpha=0.3, delta=0.25), pairs_per_update=4)
    betas_used: list[float] = []
    control = method.control
    method.control = lambda evidence: (betas_used.append(method.beta), control(evidence))[1]  # type: ignore[method-assign]
    trained(tmp_path, "4 × 4", method, steps=2, rows=random_pairs(40, seed=2))
    assert method.updates == 8
    # Two updates of warm-up; the third forms its losses before it moves beta, the fourth has its beta.
    assert betas_used[:3] == [0.1, 0.1, 0.1]
    assert betas_used[3] != 0.1
    assert method.beta != betas_used[-1]
