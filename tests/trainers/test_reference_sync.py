"""A reference that follows the policy: ten steps beside TRL's, checkpoints, evaluation, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trl import DPOTrainer

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.errors import CheckpointError, ConfigError, ModelError
from dynamic_dpo.methods import (
    DPO,
    DPOMethodConfig,
    EpsilonDPO,
    Needs,
    PreferenceMethod,
    Risk,
    RiskConfig,
    SimPO,
)
from dynamic_dpo.methods.objective import ObjectiveConfig, ReferenceSync, adjusted
from dynamic_dpo.runs.files import REFERENCE_WEIGHTS
from dynamic_dpo.trainers import PreferenceTrainer, RiskBetaDPOConfig, RiskBetaDPOTrainer
from helpers_trl import BETA, STEPS, arguments, policy, recording, text_of
from tiny import random_pairs, tiny_gpt2, tiny_llama, training_arguments, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = random_pairs(16, seed=4)
BATCH = PairBatch(ROWS["prompt_ids"], ROWS["chosen_ids"], ROWS["rejected_ids"], range(len(ROWS)))
SYNC = ReferenceSync(steps=2, mixup_alpha=0.3)


def make(
    folder: Path,
    method: PreferenceMethod | None = None,
    sync: ReferenceSync | None = SYNC,
    *,
    args: dict[str, Any] | None = None,
    **settings: Any,
) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=settings.pop("model", None) or tiny_llama(seed=1),
        args=training_arguments(folder, learning_rate=1e-2, **{"max_steps": 5, **(args or {})}),
        train_dataset=ROWS,
        processing_class=word_tokenizer(),
        method=method or DPO(DPOMethodConfig(beta=0.3)),
        engine=EngineConfig(reference_dir=str(folder.parent / "reference")),
        reference_sync=sync,
        **settings,
    )


def losses_of(trainer: PreferenceTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("steps", "alpha"), [(2, 0.6), (3, 1.0), (1, 0.1)], ids=["soft", "hard", "every step"]
)
@pytest.mark.parametrize("further", [{}, {"loss_type": ["ipo", "sft"], "ld_alpha": 0.5}], ids=["dpo", "sum"])
def test_ten_steps_are_trls(tmp_path: Path, steps: int, alpha: float, further: dict[str, Any]) -> None:
    sync = {"sync_ref_model": True, "ref_model_sync_steps": steps, "ref_model_mixup_alpha": alpha}
    rows = random_pairs(48, seed=3)
    theirs: list[float] = []
    ours: list[float] = []
    trl = recording(DPOTrainer, theirs)(
        model=policy(),
        ref_model=copy.deepcopy(policy()),
        args=arguments(tmp_path / "trl", learning_rate=1e-3, **sync, **further),
        train_dataset=text_of(rows),
        processing_class=word_tokenizer(),
    )
    trl.train()
    trainer = recording(RiskBetaDPOTrainer, ours)(
        model=policy(),
        args=arguments(tmp_path / "ours", learning_rate=1e-3, **sync, **further),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        engine=EngineConfig(reference_dir=str(tmp_path / "reference"), head_chunk=7),
        dynamic_cfg=RiskBetaDPOConfig(beta_0=BETA, alpha=0.0, warmup_steps=1, log_margins=False),
    )
    trainer.train()
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5 * max(map(abs, theirs)))
    assert not (tmp_path / "reference").exists()
    for name, weight in trl.ref_model.state_dict().items():
        torch.testing.assert_close(
            trainer.policy.reference_model.state_dict()[name], weight, rtol=1e-4, atol=1e-5
        )


def test_the_reference_moves_when_it_is_due_and_no_further(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", args={"max_steps": 1})
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.policy.reference_model.named_parameters():
        assert torch.equal(weight, start[name]), name
    trainer.policy.move_reference(0.3)
    moved = dict(trainer.policy.reference_model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(moved[name], 0.7 * start[name] + 0.3 * weight, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(moved[name], start[name]) for name in start)
    trainer.policy.move_reference(1.0)
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(moved[name], weight), name
    with torch.no_grad():
        forward = trainer.policy.forward(trainer.model, BATCH, Needs())
    assert forward.margins.abs().max() < 1e-5


@pytest.mark.parametrize(
    "method",
    [
        DPO,
        lambda: Risk(RiskConfig(warmup_steps=1, alpha=0.3, delta=0.25), pairs_per_update=4),
        lambda: EpsilonDPO(),
        lambda: adjusted(DPO(), ObjectiveConfig(ld_alpha=0.5, nll_weight=0.1)),
    ],
    ids=["dpo", "risk", "live logits", "objective"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, method: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7, "logging_steps": 1}
    whole = make(tmp_path / "run", method(), args=saving)
    whole.train()
    assert (tmp_path / "run" / "checkpoint-3" / REFERENCE_WEIGHTS).is_file()
    resumed = make(tmp_path / "run", method(), args=saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert losses_of(resumed) == losses_of(whole)
    for one, other in (
        (whole.model, resumed.model),
        (whole.policy.reference_model, resumed.policy.reference_model),
    ):
        for (name, weight), (_, same) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(weight, same), name
    assert resumed.method.state_dict() == whole.method.state_dict()


def test_a_checkpoint_without_its_reference_is_refused(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tmp_path / "run", args=saving).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(CheckpointError, match=r"reference_sync.*the checkpoint has .*mixup_alpha"):
        make(tmp_path / "run", sync=ReferenceSync(steps=3), args=saving).train(
            resume_from_checkpoint=str(checkpoint)
        )
    with pytest.raises(CheckpointError, match="reference_sync"):
        make(tmp_path / "run", sync=None, args=saving).train(resume_from_checkpoint=str(checkpoint))
    trainer = make(tmp_path / "run", args=saving)
    weights = load_file(checkpoint / REFERENCE_WEIGHTS)
    save_file(dict(list(weights.items())[1:]), checkpoint / REFERENCE_WEIGHTS)
    with pytest.raises(CheckpointError, match="holds another model's weights"):
        trainer.moving_reference.load(checkpoint)
    (checkpoint / REFERENCE_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        trainer.moving_reference.load(checkpoint)


def test_a_saved_model_is_the_policy_alone(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", args={"max_steps": 2})
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert sorted(path.name for path in (tmp_path / "model").glob("*.safetensors")) == ["model.safetensors"]
    assert not (tmp_path / "model" / REFERENCE_WEIGHTS).exists()


def test_evaluation_measures_against_the_reference_as_it_is(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", sync=ReferenceSync(steps=5, mixup_alpha=1.0), eval_dataset=ROWS)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_margins/mean"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert trainer.evaluate(random_pairs(4, seed=9))["eval_margins/mean"] == pytest.approx(0.0, abs=1e-5)


def test_a_reference_that_was_given_moves_in_the_policys_dtype(tmp_path: Path) -> None:
    given = tiny_llama(seed=9).to(torch.bfloat16)
    trainer = make(tmp_path / "run", sync=ReferenceSync(steps=1, mixup_alpha=1e-4), ref_model=given)
    before = {name: weight.clone() for name, weight in trainer.policy.reference_model.named_parameters()}
    trainer.train()
    after = dict(trainer.policy.reference_model.named_parameters())
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert all(not torch.equal(after[name], before[name]) for name in before if before[name].ndim == 2)


def test_what_cannot_follow_is_refused(tmp_path: Path) -> None:
    adapters = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(
        ConfigError, match=r"reference_sync\.steps moves a reference of its own, and with adapters"
    ):
        make(tmp_path / "a", peft_config=adapters)
    with pytest.raises(
        ConfigError, match=r"reference_sync\.steps has no effect on a loss that needs no reference"
    ):
        make(tmp_path / "b", SimPO())
    with pytest.raises(
        ConfigError, match=r"reference_sync\.mixup_alpha has no effect where the reference stays"
    ):
        make(tmp_path / "c", sync=ReferenceSync(mixup_alpha=0.5))
    with pytest.raises(ConfigError, match=r"mixup_alpha must lie in \(0, 1\], got 0"):
        ReferenceSync(steps=1, mixup_alpha=0.0)
    with pytest.raises(ModelError, match="ref_model has other weights than it"):
        make(tmp_path / "d", ref_model=tiny_gpt2())
    args = arguments(tmp_path / "e", sync_ref_model=True, precompute_ref_log_probs=True)
    with pytest.raises(ConfigError, match="a reference that moves cannot be scored before training"):
        RiskBetaDPOTrainer(tiny_llama(), args=args, train_dataset=ROWS, processing_class=word_tokenizer())
