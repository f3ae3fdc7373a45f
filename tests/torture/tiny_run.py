"""A whole training of less than a second, begun or resumed, and a digest of everything it ends with."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.methods.base import Scope
from dynamic_dpo.methods.risk.config import RiskMode
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.folders import checkpoint_folders
from tiny import VOCAB, random_pairs, training_arguments, word_tokenizer

# What a clock says, and where things lie.
NOT_COMPARED = ("runtime", "per_second", "seconds_left", "matmul_limit", "npy")
# One for all runs: their reference log-probabilities are the same.
PAIRS = 20


def tiniest_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.2,
        )
    )


# Every mode of the controller in every scope.
CONTROLLERS = [(mode, scope) for mode in get_args(RiskMode) for scope in get_args(Scope)]


def build(
    folder: Path,
    *,
    controller: tuple[str, str] = ("paper", "micro"),
    keep_best: KeepBest | None = None,
    **overrides: Any,
) -> PreferenceTrainer:
    """Return the trainer of the tiny run: 2 epochs of 5 steps, a log entry every 3, a checkpoint every 2."""
    mode, scope = controller
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    engine = EngineConfig(reference_dir=str(folder / "reference"), self_check=False)
    config = RiskConfig(
        mode=mode,  # type: ignore[arg-type]
        scope=scope,  # type: ignore[arg-type]
        warmup_steps=5 if scope == "micro" else 3,
        alpha=0.3,
        delta=0.25,
        window_multiple=2,
        margin_budget=0.5 if mode == "target" else None,
    )
    method = Risk(config, pairs_per_update=2 if scope == "micro" else 4)
    return PreferenceTrainer(
        model=tiniest_llama(),
        args=training_arguments(folder / "run", **(settings | overrides)),
        train_dataset=random_pairs(PAIRS, longest=6),
        eval_dataset=random_pairs(4, seed=9, longest=6),
        processing_class=word_tokenizer(),
        method=method,
        engine=engine,
        margin_log=MarginLogConfig(),
        keep_best=keep_best,
    )


def train(folder: Path, **overrides: Any) -> None:
    """Begin the run in ``folder`` or go on with it, and leave the digest of its end in ``end.json``."""
    trainer = build(folder, **overrides)
    trainer.train(resume_from_checkpoint=trainer.find_checkpoint())
    (folder / "end.json").write_text(json.dumps(digest(trainer), indent=1))


@cache
def warm_up() -> None:
    """Run once in this process, so that forked ones find everything imported, compiled and drawn already."""
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        train(Path(folder))
        train(Path(folder))
    # Or each child would walk through, and copy, all the objects of its parent.
    gc.collect()
    gc.freeze()


def digest(trainer: PreferenceTrainer) -> dict[str, str]:
    """Return hashes of weights, optimizer, controller, log entries, margin logs and the newest checkpoint."""
    run = Path(trainer.args.output_dir)
    logs = run / "logs" / "margins"
    newest = checkpoint_folders(run)[0]
    state = json.loads((newest / "controller_state.json").read_text())
    # Whether a signal came before the last evaluation, and how long the folder's name is, are no results.
    state["log"].pop("evaluation_pending")
    state.pop("margin_log")
    parts: dict[str, Any] = {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "optimizer": {
            f"{number}.{name}": value.tolist()
            for number, values in trainer.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        },
        "controller": trainer.method.state_dict(),
        "counts": [trainer.num_updates, trainer.num_pairs_seen, trainer.state.global_step],
        "log_history": [_timeless(entry) for entry in trainer.state.log_history],
        "margins": [
            _timeless(json.loads(line)) for line in (logs / "margins.jsonl").read_text().splitlines()
        ],
        "readings": [json.loads(line) for line in (logs / "controller.jsonl").read_text().splitlines()],
        "arrays": {path.name: path.read_bytes().hex() for path in logs.rglob("*.npy")},
        "checkpoint": [newest.name, state],
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(NOT_COMPARED)}
