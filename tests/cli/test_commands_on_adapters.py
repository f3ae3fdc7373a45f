"""Adapters between commands: what one has trained is the policy, or the reference, of the next."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynamic_dpo.cli import train_dpo, train_sft
from dynamic_dpo.config import dump_yaml
from dynamic_dpo.models.adapters import find_model, open_model
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}w1 {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}w1 assistant {% endif %}"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    word_tokenizer(template=TEMPLATE).save_pretrained(tmp_path / "model")
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 8)))

    rows = [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "log_steps": 1,
        "save_steps": 1,
        "max_steps": 2,
        "disable_tqdm": True,
    }
    settings = {
        "policy_name": str(tmp_path / "model"),
        "precision": "fp32",
        "dataset": {"dataset_name": str(tmp_path / "rows.jsonl"), "subset": "train", "val_ratio": 0},
        "dpo_training": {"save_dir": str(tmp_path / "dpo"), **common},
        "sft_training": {"save_dir": str(tmp_path / "sft"), **common},
    }
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings), encoding="utf-8")
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def logits_of(folder: Path) -> torch.Tensor:
    model, _ = open_model(find_model(str(folder)), device="cpu", dtype="float32")
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits  # type: ignore[no-any-return]


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "run_summary.json").read_text(encoding="utf-8"))
    return summary


def first_margins(run: Path) -> list[float]:
    line = (run / "logs" / "margins" / "margins.jsonl").read_text().splitlines()[0]
    found = json.loads(line)
    return [found["mean"], found["std"]]


def test_an_adapter_goes_from_training_to_training(config: Path, tmp_path: Path) -> None:
    def train(command: Any, *overrides: str) -> None:
        assert command.main(["--config", str(config), *overrides]) == 0

    train(train_sft, "peft.r=2")
    assert {path.name for path in (tmp_path / "sft").glob("*.safetensors")} == {"adapter_model.safetensors"}
    on_sft = f"policy_name={tmp_path / 'sft'}"
    train(train_dpo, on_sft)
    dpo = tmp_path / "dpo"
    before, after = weights_of(tmp_path / "sft"), weights_of(dpo)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # Its reference is the adapter as it was: the first margins are 0.
    assert first_margins(dpo) == pytest.approx([0, 0], abs=1e-4)
    assert summary_of(dpo)["reference_computed"] == 16

    second = tmp_path / "second"
    named = f"ref_name={tmp_path / 'model'}"
    train(train_dpo, f"policy_name={dpo}", named, f"dpo_training.save_dir={second}")
    assert abs(first_margins(second)[0]) + first_margins(second)[1] > 1e-3
    assert not torch.equal(logits_of(second), logits_of(dpo))
    # Resumed from its first step, it is the same run.
    third = tmp_path / "third"
    resumed = f"dpo_training.resume={second / 'checkpoint-1'}"
    train(train_dpo, f"policy_name={dpo}", named, f"dpo_training.save_dir={third}", resumed)
    ours, theirs = weights_of(third), weights_of(second)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # Fine-tuning goes on with one too, and its section may say what it is.
    train(train_sft, on_sft, "peft.r=2", f"sft_training.save_dir={tmp_path / 'sft2'}")
    assert weights_of(tmp_path / "sft2").keys() == before.keys()
    assert any(not torch.equal(before[name], value) for name, value in weights_of(tmp_path / "sft2").items())


def test_settings_that_describe_another_adapter_are_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_sft.main(["--config", str(config), "peft.r=2"]) == 0
    arguments = ["--config", str(config), f"policy_name={tmp_path / 'sft'}", "peft.r=8", "peft.lora_alpha=32"]
    assert train_dpo.main(arguments) == 2
    said = capsys.readouterr().err
    assert "peft.r is 8 and the adapter has 2. Remove them, or merge the adapter first" in said
    assert "lora_alpha" not in said
