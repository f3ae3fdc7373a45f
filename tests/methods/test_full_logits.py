"""Token statistics of the engine beside a plain computation from whole logits, one sequence at a time.

The engine's way: prompts shared in a row, the head in chunks of three, adapters switched off for the reference. The
plain way: the model's own forward on one sequence, everything in float64.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import WPO, EpsilonDPO, EpsilonDPOConfig, PreferenceMethod
from dynamic_dpo.methods.epsilon_dpo import AWAY, TOWARDS
from dynamic_dpo.methods.wpo import ALIGNED_LOGPS
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

EPSILON = 0.1
ROWS = random_pairs(16, seed=5)


def lora(*, head: bool) -> LoraConfig:
    # An adapter on the head makes it more than a linear map.
    modules = ["q_proj", "v_proj", "lm_head"] if head else ["q_proj", "v_proj"]
    return LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)


SETUPS: dict[str, dict[str, Any]] = {
    "full fine-tuning": {},
    "shared rows": {"layout": "shared"},
    "plain rows": {"layout": "plain"},
    "adapters": {"peft_config": lora(head=False)},
    "adapter on the head": {"peft_config": lora(head=True)},
    "a reference of its own": {"ref_model": 9},
}


def trained(folder: Path, setup: dict[str, Any], method: PreferenceMethod) -> tuple[PreferenceTrainer, Any]:
    """A trainer after two steps, and a copy of its reference that nothing has touched."""
    settings = dict(setup)
    layout = settings.pop("layout", "auto")
    policy = tiny_llama(seed=1)
    if "ref_model" in settings:
        settings["ref_model"] = tiny_llama(seed=settings["ref_model"])
    reference = copy.deepcopy(settings.get("ref_model", policy))
    trainer = PreferenceTrainer(
        model=policy,
        args=training_arguments(folder, learning_rate=1e-2, max_steps=2),
        train_dataset=ROWS,
        processing_class=word_tokenizer(),
        method=method,
        engine=EngineConfig(layout=layout, head_chunk=3, reference_dir=str(folder / "reference")),
        **settings,
    )
    if "peft_config" not in settings:
        trainer.train()
    return trainer, reference


def logits_of(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()


def logp(logits: torch.Tensor, completion: list[int]) -> float:
    return float(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


def by_completion(rows: Dataset, value: Any) -> torch.Tensor:
    return torch.tensor(
        [
            [value(row["prompt_ids"], row["chosen_ids"]), value(row["prompt_ids"], row["rejected_ids"])]
            for row in rows
        ],
        dtype=torch.float64,
    )


def engines(trainer: PreferenceTrainer) -> Any:
    pairs = PairBatch(ROWS["prompt_ids"], ROWS["chosen_ids"], ROWS["rejected_ids"], range(len(ROWS)))
    with torch.no_grad():
        return trainer.policy.forward(trainer.model, pairs, trainer.method.needs)


@pytest.mark.parametrize("name", SETUPS)
def test_epsilon_dpos_steps_are_those_of_whole_logits(tmp_path: Path, name: str) -> None:
    method = EpsilonDPO(EpsilonDPOConfig(epsilon=EPSILON))
    trainer, reference = trained(tmp_path, SETUPS[name], method)
    assert (trainer.policy.scorer.layout == "plain") == (name == "plain rows")
    forward = engines(trainer)

    def moved(sign: float) -> torch.Tensor:
        def value(prompt: list[int], completion: list[int]) -> float:
            ours, theirs = (logits_of(model, prompt, completion) for model in (trainer.model, reference))
            return logp((1 + sign * EPSILON) * ours - sign * EPSILON * theirs, completion)

        return by_completion(ROWS, value)

    plain = by_completion(ROWS, lambda prompt, done: logp(logits_of(trainer.model, prompt, done), done))
    away, towards = moved(1.0), moved(-1.0)
    torch.testing.assert_close(forward.statistics[AWAY].double(), away - plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forward.statistics[TOWARDS].double(), towards - plain, rtol=1e-4, atol=1e-4)
    r, above, below = (scores[:, 0] - scores[:, 1] for scores in (plain, away, towards))
    steps = ((above > r) & (r > below)).double() - ((below > r) & (r > above)).double()
    assert method.evidence(forward).tolist() == steps.tolist()
    assert set(steps.tolist()) >= {-1.0, 1.0}


@pytest.mark.parametrize("name", ["full fine-tuning", "shared rows", "plain rows", "adapter on the head"])
def test_wpos_weights_are_those_of_whole_logits(tmp_path: Path, name: str) -> None:
    trainer, _ = trained(tmp_path, SETUPS[name], WPO())

    def aligned(prompt: list[int], completion: list[int]) -> float:
        logits = logits_of(trainer.model, prompt, completion)
        return logp(logits, completion) - float((logits.softmax(-1) ** 2).sum(-1).log().sum())

    forward = engines(trainer)
    expected = by_completion(ROWS, aligned)
    torch.testing.assert_close(forward.statistics[ALIGNED_LOGPS].double(), expected, rtol=1e-5, atol=1e-4)
    lengths = torch.tensor([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in ROWS])
    weights = (expected / lengths).sum(1).exp()
    method = WPO()
    control = method.control(method.evidence(forward))
    losses = method.losses(forward, control).double()
    plain = -torch.nn.functional.logsigmoid(0.1 * forward.margins.double())
    torch.testing.assert_close(losses, weights * plain, rtol=1e-5, atol=1e-6)


def test_before_the_first_step_no_pair_steps(tmp_path: Path) -> None:
    for setup in ({}, {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")}):
        trainer = PreferenceTrainer(
            model=tiny_llama(),
            args=training_arguments(tmp_path),
            train_dataset=ROWS,
            processing_class=word_tokenizer(),
            method=EpsilonDPO(),
            **setup,  # type: ignore[arg-type]
        )
        assert trainer.method.evidence(engines(trainer)).tolist() == [0.0] * len(ROWS)


def test_statistics_do_not_depend_on_the_chunk(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, {}, EpsilonDPO(EpsilonDPOConfig(epsilon=EPSILON)))
    small = engines(trainer).statistics
    object.__setattr__(trainer.policy.scorer.config, "head_chunk", 1000)
    large = engines(trainer).statistics
    for key in (AWAY, TOWARDS):
        # Sums of float32 logarithms of either sign: what cancels leaves the rounding of its parts.
        torch.testing.assert_close(small[key], large[key], rtol=1e-5, atol=1e-5)
