"""The script for TRL's trainer and the one for ours: two lines differ, and the same steps are made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from difflib import ndiff
from pathlib import Path

import pytest

from helpers_trl import text_of
from places import ROOT
from tiny import random_pairs, tiny_llama, word_tokenizer

OURS = (ROOT / "examples" / "trl_drop_in.py").read_text()
# The lines of TRL's documentation in the place of ours.
THEIRS = OURS.replace("from dynamic_dpo import RiskBetaDPOTrainer\n", "from trl import DPOTrainer\n").replace(
    "trainer = RiskBetaDPOTrainer(\n", "trainer = DPOTrainer(\n"
)
STEPS = 4
SETTINGS = {
    "model": "model",
    "pairs": "pairs",
    "use_cpu": "true",
    "bf16": "false",
    "logging_steps": "1",
    "learning_rate": "1e-2",
    "max_steps": str(STEPS),
    "seed": "7",
}


def test_two_lines_differ() -> None:
    changes = [line for line in ndiff(THEIRS.splitlines(), OURS.splitlines()) if line[0] in "+-"]
    assert changes == [
        "- from trl import DPOTrainer",
        "+ from dynamic_dpo import RiskBetaDPOTrainer",
        "- trainer = DPOTrainer(",
        "+ trainer = RiskBetaDPOTrainer(",
    ]


def start(script: str, name: str, folder: Path) -> subprocess.Popen[bytes]:
    file = folder / f"{name}.py"
    file.write_text(script)
    settings = SETTINGS | {"output_dir": name}
    return subprocess.Popen(
        [
            sys.executable,
            file.name,
            *(part for key, value in settings.items() for part in (f"--{key}", value)),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def logged(folder: Path) -> list[dict[str, float]]:
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def test_both_scripts_make_the_same_steps(tmp_path: Path) -> None:
    if not importlib.metadata.version("trl").startswith("1.16."):
        pytest.skip("its losses are compared with those of TRL 1.16")
    tiny_llama(seed=1).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    text_of(random_pairs(24, seed=3)).to_json(tmp_path / "pairs" / "train.jsonl")
    runs = {name: start(script, name, tmp_path) for name, script in (("ours", OURS), ("theirs", THEIRS))}
    for name, run in runs.items():
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, f"{name}: {output.decode()}"
    ours, theirs = logged(tmp_path / "ours"), logged(tmp_path / "theirs")
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        for metric in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen"):
            assert mine[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-5), metric
        assert mine["beta"] == 0.1
        assert mine["num_tokens"] == other["num_tokens"]
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.01
    # What one script's run leaves is a model for the other's.
    assert (tmp_path / "ours" / f"checkpoint-{STEPS}" / "model.safetensors").is_file()
