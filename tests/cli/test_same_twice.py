"""One configuration, one result: each command is run twice and leaves the same files, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.cli import evaluate, train_dpo, train_sft
from helpers_evaluation import write_config, write_hh_rows
from tiny import tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# What a clock says; and what is made of it: a list of hashes, and arguments that hold the time in a folder's name.
CLOCK = ("seconds", "runtime", "per_second", "memory_bytes", "_at", "created", "time", "reference_computed")
CLOCK = (*CLOCK, "reference_reused", "duration", "seconds_left", "matmul_limit", "by_device")
NOT_COMPARED = ("manifest.json", "training_args.bin")
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "train-dpo": (train_dpo.main, []),
    "train-dpo with an adapter": (train_dpo.main, ["peft.r=4"]),
    "train-sft": (train_sft.main, []),
    "train-sft with an adapter": (train_sft.main, ["peft.r=4"]),
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    # With dropout, which fine-tuning keeps, and with weights that the files lack.
    model = tiny_llama()
    model.config.attention_dropout = 0.1
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(folder, state_dict=state)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, models: Path) -> str:
    write_hh_rows(tmp_path / "rows.jsonl", 24)
    training = {"batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "log_steps": 1, "max_steps": 3}
    training |= {"save_steps": 2, "save_dir": "run", "disable_tqdm": True}
    settings = {
        "policy_name": str(models),
        "precision": "fp32",
        "dataset": {"dataset_name": str(tmp_path / "rows.jsonl"), "subset": "train"},
        "dpo_training": {**training, "gradient_accumulation": 2, "eval_steps": 2},
        "sft_training": {**training, "save_only_model": False},
        "risk_test": {"beta_warmup": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    return str(path)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not key.endswith(CLOCK)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, Any]:
    """Every file below a folder: bytes, or what JSON says without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name in NOT_COMPARED:
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found


def run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[list[str]], int], arguments: list[str]
) -> list[dict[str, Any]]:
    """Run a command in two folders, each time after other random numbers were drawn."""
    found = []
    for name in ("first", "again"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        torch.manual_seed(len(found))
        random.seed(len(found))
        assert command(arguments) == 0
        found.append(content(folder))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_training_leaves_the_same_files_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, name: str
) -> None:
    command, overrides = COMMANDS[name]
    first, again = run_twice(tmp_path, monkeypatch, command, ["--config", config, *overrides])
    assert any(path.endswith(".safetensors") for path in first)
    assert list(first) == list(again)
    assert [path for path in first if first[path] != again[path]] == []


def test_sampled_texts_are_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    rows = write_hh_rows(tmp_path / "rows.jsonl", 12)
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    path = write_config(
        tmp_path / "evaluation",
        {name: str(tmp_path / "model") for name in ("one", "two")},
        rows,
        "http://localhost:9",
        generation=sampling,
    )
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "output": {"dir": "evaluation"}}))

    def command(arguments: list[str]) -> int:
        return max(evaluate.main([*arguments, "--stage", stage]) for stage in ("prepare", "generate"))

    first, again = run_twice(tmp_path, monkeypatch, command, ["--config", str(path)])
    texts = "evaluation/generations.jsonl"
    assert len(first[texts]) == 6
    assert first[texts] == again[texts]
