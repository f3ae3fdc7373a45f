"""Twenty steps of plain DPO beside the installed TRL trainer: the same rows, order, losses and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import DPO, DPOMethodConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import VOCAB, random_pairs, tiny_llama, word_tokenizer

BETA = 0.3
STEPS = 20
BATCH = 4

# The installed TRL still asks transformers for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Record(NamedTuple):
    """What one trainer left behind, step by step."""

    prompts: list[list[list[int]]]
    losses: list[float]
    logs: list[dict[str, Any]]
    logps: torch.Tensor
    weights: dict[str, torch.Tensor]


def arguments(folder: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        beta=BETA,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        activation_checkpointing=False,
        precompute_ref_log_probs=False,
        max_steps=STEPS,
        learning_rate=2e-3,
        warmup_steps=5,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
    )


def words(ids: list[int]) -> str:
    return " ".join(f"w{i - 4}" for i in ids)


def policy() -> Any:
    model = tiny_llama(seed=1)
    # Larger logits, so that margins of some nats arise and the loss leaves log 2.
    model.lm_head.weight.data *= 2
    return model


def trl_run(folder: Path) -> tuple[Record, Dataset]:
    rows = random_pairs(48, seed=3)
    text = Dataset.from_dict(
        {
            "prompt": [words(ids) for ids in rows["prompt_ids"]],
            # TRL adds the end-of-sequence token by itself.
            "chosen": [" " + words(ids[:-1]) for ids in rows["chosen_ids"]],
            "rejected": [" " + words(ids[:-1]) for ids in rows["rejected_ids"]],
        }
    )
    prompts, losses = [], []

    class Recording(DPOTrainer):  # type: ignore[misc]
        def training_step(
            self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            half = len(inputs["input_ids"]) // 2
            kept = zip(inputs["input_ids"], inputs["completion_mask"], inputs["attention_mask"], strict=True)
            asked = [ids[(mask == 0) & (seen == 1)].tolist() for ids, mask, seen in kept]
            prompts.append(asked[:half])
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(float(loss))
            return loss

    model = policy()
    trainer = Recording(
        model=model,
        ref_model=copy.deepcopy(model),
        args=arguments(folder),
        train_dataset=text,
        processing_class=word_tokenizer(),
    )
    tokenised = trainer.train_dataset
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(tokenised[column]) == list(rows[column])
    trainer.train()
    inputs = trainer.data_collator([tokenised[i] for i in range(16)])
    with torch.no_grad():
        logps = torch.stack(trainer.compute_ref_log_probs(trainer.model, inputs), dim=1)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Record(prompts, losses, logs, logps, dict(trainer.model.state_dict())), rows


def our_run(folder: Path, rows: Dataset) -> Record:
    prompts, losses = [], []

    class Recording(PreferenceTrainer):
        def training_step(
            self, model: Any, inputs: dict[str, PairBatch], *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            prompts.append([list(ids) for ids in inputs["pairs"].prompts])
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(float(loss))
            return loss

    trainer = Recording(
        model=policy(),
        args=arguments(folder),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        method=DPO(DPOMethodConfig(beta=BETA)),
        engine=EngineConfig(reference_dir=str(folder / "reference")),
    )
    assert trainer.policy.scorer.layout == "packed"
    trainer.train()
    first = rows.select(range(16))
    pairs = PairBatch(first["prompt_ids"], first["chosen_ids"], first["rejected_ids"], range(16))
    with torch.no_grad():
        scored = trainer.policy.scorer.score(trainer.model, pairs)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    logps = torch.stack([scored.chosen, scored.rejected], dim=1)
    return Record(prompts, losses, logs, logps, dict(trainer.model.state_dict()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Record]:
    folder = tmp_path_factory.mktemp("parity")
    theirs, rows = trl_run(folder / "trl")
    return our_run(folder / "ours", rows), theirs


def test_both_trainers_see_the_same_rows_in_the_same_order(runs: tuple[Record, Record]) -> None:
    ours, theirs = runs
    assert len(ours.prompts) == STEPS
    assert ours.prompts == theirs.prompts
    assert all(0 <= token < VOCAB for step in ours.prompts for prompt in step for token in prompt)


def test_twenty_losses_are_trls(runs: tuple[Record, Record]) -> None:
    ours, theirs = runs
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert min(ours.losses) < 0.6 < 0.69 < ours.losses[0]  # something was learned


@pytest.mark.parametrize("name", ["logps/chosen", "logps/rejected"])
def test_logged_log_probabilities_are_trls(runs: tuple[Record, Record], name: str) -> None:
    ours, theirs = ([entry[name] for entry in run.logs] for run in runs)
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_log_probabilities_of_each_pair_after_training_are_trls(runs: tuple[Record, Record]) -> None:
    ours, theirs = runs
    torch.testing.assert_close(ours.logps, theirs.logps, rtol=1e-5, atol=0)


def test_gradient_norms_are_trls(runs: tuple[Record, Record]) -> None:
    ours, theirs = ([entry["grad_norm"] for entry in run.logs] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert min(ours) > 0


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_rewards_are_trls_to_rounding_of_beta_times_the_log_probabilities(
    runs: tuple[Record, Record], side: str
) -> None:
    for ours, theirs in zip(runs[0].logs, runs[1].logs, strict=True):
        scale = abs(BETA * theirs[f"logps/{side}"])
        assert abs(ours[f"rewards/{side}"] - theirs[f"rewards/{side}"]) <= 1e-5 * scale


def test_accuracies_and_learning_rates_are_trls(runs: tuple[Record, Record]) -> None:
    # The warm-up's first learning rate is 0: in steps 1 and 2 margins are rounding, their signs chance.
    for ours, theirs in zip(runs[0].logs[2:], runs[1].logs[2:], strict=True):
        assert ours["rewards/accuracies"] == pytest.approx(theirs["rewards/accuracies"])
        assert ours["learning_rate"] == theirs["learning_rate"]
