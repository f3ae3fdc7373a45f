"""Training on answers within which others speak: margins, reference, lengths and the dump are those of the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import DataError
from dynamic_dpo.methods import DPO, METHODS, DPOMethodConfig
from dynamic_dpo.methods.base import BuildContext
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.identity import data_fingerprint
from dynamic_dpo.trainers.reference_pass import collate_pairs
from dynamic_dpo.utils.debug import log_dpo_debug_samples
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

# Normalised by length, weighted by token statistics, and steered by margins.
SETTINGS: dict[str, dict[str, Any]] = {"risk": {"warmup_steps": 1}}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def masked_pairs(count: int = 12) -> Dataset:
    """Random pairs; of every second one the chosen answer is only half scored, of every third the rejected one."""

    def mask(ids: list[int], *, is_masked: bool) -> list[int] | None:
        return [(place + 1) % 2 for place in range(len(ids))] if is_masked and len(ids) > 1 else None

    rows = random_pairs(count)
    return rows.add_column(
        "chosen_mask", [mask(ids, is_masked=i % 2 == 0) for i, ids in enumerate(rows["chosen_ids"])]
    ).add_column(
        "rejected_mask", [mask(ids, is_masked=i % 3 == 0) for i, ids in enumerate(rows["rejected_ids"])]
    )


def run(folder: Path, rows: Dataset, **settings: Any) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model=settings.pop("model", None) or tiny_llama(),
        args=training_arguments(folder, **{"max_steps": 2, **settings.pop("args", {})}),
        train_dataset=rows,
        processing_class=word_tokenizer(template=TEMPLATE),
        method=settings.pop("method", None) or DPO(DPOMethodConfig(beta=0.1)),
        **settings,
    )
    trainer.train()
    return trainer


def logp(model: Any, prompt: list[int], completion: list[int], mask: list[int] | None) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    logps = logits.double().log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
    return float((logps * torch.tensor(mask or [1] * len(completion))).sum())


def counted(folder: Path) -> tuple[int, int]:
    summary = json.loads((folder / "run_summary.json").read_text())
    return summary["reference_computed"], summary["reference_reused"]


def test_the_reference_scores_what_the_mask_leaves(tmp_path: Path) -> None:
    rows = masked_pairs()
    trainer = run(tmp_path, rows, args={"learning_rate": 0.0})
    model = tiny_llama()
    for row, stored in zip(rows, trainer.train_dataset, strict=True):
        for side in ("chosen", "rejected"):
            expected = logp(model, row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"])
            assert stored[f"ref_{side}_logps"] == pytest.approx(expected, abs=1e-4)


def test_stored_references_of_the_same_tokens_with_another_mask_are_not_taken(tmp_path: Path) -> None:
    rows = masked_pairs()
    plain = rows.remove_columns(["chosen_mask", "rejected_mask"])
    run(tmp_path / "plain", plain)
    run(tmp_path / "masked", rows)
    num_masked = sum(
        pair != (None, None) for pair in zip(rows["chosen_mask"], rows["rejected_mask"], strict=True)
    )
    assert 0 < num_masked < 12
    assert counted(tmp_path / "masked") == (num_masked, 12 - num_masked)
    run(tmp_path / "again", rows)
    assert counted(tmp_path / "again") == (0, 12)


@pytest.mark.parametrize("method", ["dpo", "simpo", "wpo", "risk"])
def test_losses_margins_and_weights_agree_over_the_layouts(tmp_path: Path, method: str) -> None:
    found = {}
    for layout in ("packed", "shared", "plain"):
        built = METHODS[method].build(BuildContext(SETTINGS.get(method, {}), 0.1, "step", lambda scope: 4))
        trainer = run(tmp_path / layout, masked_pairs(), method=built, engine=EngineConfig(layout=layout))
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        found[layout] = torch.tensor(losses), weights
    for layout in ("shared", "plain"):
        (losses, weights), (own_losses, own_weights) = found[layout], found["packed"]
        torch.testing.assert_close(losses, own_losses, rtol=1e-5, atol=1e-5)
        # AdamW divides by the root of tiny second moments: there rounding is the whole of a step.
        torch.testing.assert_close(weights, own_weights, rtol=1e-5, atol=5e-5)


def test_a_mask_that_leaves_nothing_out_changes_no_bit(tmp_path: Path) -> None:
    rows = random_pairs(12)
    ones = rows.add_column("chosen_mask", [[1] * len(ids) for ids in rows["chosen_ids"]])
    plain, masked = run(tmp_path / "a", rows), run(tmp_path / "b", ones)
    assert counted(tmp_path / "b") == (0, 12)
    for one, other in zip(plain.model.parameters(), masked.model.parameters(), strict=True):
        assert torch.equal(one, other)


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    {
        "prompt": [{"role": "user", "content": f"w{5 + i} w6"}],
        "chosen": [says("w7 w8"), {"role": "user", "content": "w9 w10 w11"}, says("w12")],
        "rejected": [says(f"w{13 + i}"), {"role": "tool", "content": "w20"}],
    }
    for i in range(8)
]


def test_conversations_are_trained_on_by_what_the_assistant_says(tmp_path: Path) -> None:
    trainers = {
        setting: run(tmp_path / setting, Dataset.from_list(CONVERSATIONS), answer_tokens=setting)
        for setting in ("assistant", "all")
    }
    tokenizer = word_tokenizer(template=TEMPLATE)
    pairs = {
        name: collate_pairs(trainer.train_dataset.to_list())["pairs"] for name, trainer in trainers.items()
    }
    masks = pairs["assistant"].chosen_masks
    assert masks is not None
    for ids, mask in zip(pairs["assistant"].chosen, masks, strict=True):
        scored = [token for token, counts in zip(ids, mask or (), strict=True) if counts]
        assert tokenizer.decode(scored) == "w7 w8 </s> w12 </s>"
    assert tokenizer.decode(pairs["assistant"].rejected[0]).endswith("w13 </s>")
    assert (pairs["all"].chosen_masks, pairs["all"].rejected_masks) == (None, None)
    assert "w20" in tokenizer.decode(pairs["all"].rejected[0])
    assert (
        trainers["all"].train_dataset["ref_chosen_logps"][0]
        < trainers["assistant"].train_dataset["ref_chosen_logps"][0]
    )


def test_the_dump_shows_what_is_not_scored(tmp_path: Path) -> None:
    rows = masked_pairs()
    trainer = run(tmp_path, rows)
    path = log_dpo_debug_samples(trainer, output_dir=tmp_path, first_n=2)
    dumped = json.loads(path.read_text().splitlines()[0])["chosen"]
    ids, mask, num_prompt = rows[0]["chosen_ids"], rows[0]["chosen_mask"], len(rows[0]["prompt_ids"])
    assert dumped["labels"][num_prompt:] == [
        token if counts else -100 for token, counts in zip(ids, mask, strict=True)
    ]
    assert (dumped["num_completion_tokens"], dumped["num_scored_tokens"]) == (len(ids), sum(mask))


def test_the_mask_is_part_of_a_runs_identity() -> None:
    rows = masked_pairs()
    plain = rows.remove_columns(["chosen_mask", "rejected_mask"])
    other = rows.map(lambda row: {"chosen_mask": row["chosen_mask"] and row["chosen_mask"][::-1]})
    assert len({data_fingerprint(each) for each in (rows, plain, other)}) == 3


@pytest.mark.parametrize("bad", [[1], [0, 0, 0], [1, 2, 1]], ids=["short", "nothing scored", "no mask"])
def test_masks_that_do_not_fit_are_refused_with_the_pair(tmp_path: Path, bad: list[int]) -> None:
    rows = Dataset.from_list([{"prompt_ids": [5], "chosen_ids": [6, 7, 8], "rejected_ids": [9]}] * 2)
    with pytest.raises(
        DataError, match=r"chosen_mask of pair 1 has \d values of .* for 3 tokens: expected null, or 1"
    ):
        run(tmp_path, rows.add_column("chosen_mask", [None, bad]))


def test_sets_with_and_without_masks_can_be_joined_and_logged(tmp_path: Path) -> None:
    rows = concatenate_datasets([random_pairs(4, seed=1), masked_pairs(8)])
    run(tmp_path, rows, margin_log=MarginLogConfig())
    assert counted(tmp_path)[0] == 12
