"""Seeded runs of a few seconds and all that they leave, to be held against what version 0.2 made of them.

`python tests/golden_runs.py FOLDER`, with that version on the path, wrote `golden/v0.2`: the numbers of each run, the
folder of one that was stopped half-way, and an evaluation. Only names that users rely on are imported here, so that
the same file runs with any version.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from dynamic_dpo import PreferenceTrainer, RiskBetaDPOConfig, RiskBetaDPOTrainer
from dynamic_dpo.cli import evaluate
from dynamic_dpo.methods import EpsilonDPO, EpsilonDPOConfig
from helpers_evaluation import CountingJudge, write_config, write_hh_rows
from tiny import VOCAB, random_pairs, training_arguments, word_tokenizer

# What a clock, a folder's name or a library's release says is no result; tokens were not counted then.
NOT_COMPARED = ("runtime", "per_second", "seconds_left", "matmul_limit", "npy", "num_tokens")
NOT_COMPARED = (*NOT_COMPARED, "logratios/chosen", "logratios/rejected", "margins/zeros")
STOPPED_RUN = "paper"
STOPPED_AT = 4
# The weights that every run starts from: another processor draws others by a bit, and they identify the reference.
START = Path(__file__).resolve().parent / "golden" / "v0.2" / "models" / "start" / "model.safetensors"
EVALUATED = ("summary.json", "results.csv", "prompts.jsonl")


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    """A model of 7,000 weights with grouped heads, so that a checkpoint of it is a small file."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.2,
        )
    )


def _risk(mode: str, **more: Any) -> Callable[..., PreferenceTrainer]:
    config = RiskBetaDPOConfig(
        mode=mode,  # type: ignore[arg-type]
        warmup_steps=3,
        alpha=0.3,
        delta=0.25,
        window_multiple=2,
    )
    return lambda **settings: RiskBetaDPOTrainer(dynamic_cfg=config, **settings, **more)


def _epsilon(**settings: Any) -> PreferenceTrainer:
    return PreferenceTrainer(method=EpsilonDPO(EpsilonDPOConfig(epsilon=0.1)), **settings)


RUNS: dict[str, Callable[..., PreferenceTrainer]] = {
    "paper": _risk("paper"),
    "exact": _risk("exact"),
    "epsilon_dpo": _epsilon,
    "lora": _risk("paper", peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")),
}


def make(name: str, folder: str | Path, **more: Any) -> PreferenceTrainer:
    """Return the trainer of a run: 2 epochs of 4 steps (the last one short), a checkpoint every 4."""
    model = small_llama()
    if START.is_file():
        model.load_state_dict(load_file(START))
    torch.manual_seed(42)  # The arguments' own: version 0.2 drew an adapter's weights without setting it.
    arguments = training_arguments(
        folder,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=STOPPED_AT,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=2,
    )
    return RUNS[name](
        model=model,
        args=arguments,
        train_dataset=random_pairs(28),
        eval_dataset=random_pairs(6, seed=9),
        processing_class=word_tokenizer(),
        **more,
    )


def arithmetic() -> dict[str, str]:
    """Say how this machine rounds: bits can be compared where all of this is equal.

    The weights after three plain steps of a stock model stand for what the libraries make of this processor.
    """
    model = small_llama(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(2 * 24).reshape(2, 24) % VOCAB
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "three steps": _digest(list(model.state_dict().values())),
    }


def measure(name: str, folder: str | Path) -> dict[str, Any]:
    """Train a run from its start and return everything that it leaves."""
    trainer = make(name, folder)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer.train()
        evaluated = trainer.evaluate()
    return {**end_of(trainer), "evaluation": _timeless(evaluated)}


def end_of(trainer: PreferenceTrainer) -> dict[str, Any]:
    """Return log entries, controller, weights, margin logs and the newest checkpoint's content."""
    run = Path(trainer.args.output_dir)
    checkpoint = run / f"checkpoint-{trainer.state.global_step}"
    state = json.loads((checkpoint / "controller_state.json").read_text())
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    schedule = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    logs = run / "logs" / "margins"
    # How long a line is hangs on the name of its folder.
    state.pop("margin_log", None)
    # Version 0.2 kept neither.
    state["log"].pop("loss_total", None)
    state.pop("num_tokens_seen", None)
    state["log"]["metrics"].pop("ratios", None)
    trained = {n: w for n, w in trainer.model.named_parameters() if w.requires_grad}
    return {
        "log": [_timeless(entry) for entry in trainer.state.log_history if "loss" in entry],
        "method": trainer.method.state_dict(),
        "weights": {name: float(weight.detach().double().norm()) for name, weight in trained.items()},
        "weights_sha256": _digest([trainer.model.state_dict()[name] for name in trained]),
        "checkpoint": {
            "files": sorted(path.name for path in checkpoint.iterdir()),
            "controller_state": state,
            "optimizer_sha256": _digest([v for s in optimizer.values() for _, v in sorted(s.items())]),
            "schedule": {k: v for k, v in schedule.items() if isinstance(v, int | float | list)},
        },
        "margin_log": [_timeless(json.loads(line)) for line in _lines(logs / "margins.jsonl")],
        "readings": [json.loads(line) for line in _lines(logs / "controller.jsonl")],
    }


def stop_half_way(folder: str | Path) -> None:
    """Leave the folder of a run that ended at `STOPPED_AT` with a checkpoint."""

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= STOPPED_AT

    make(STOPPED_RUN, folder, callbacks=[Stop()]).train()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(NOT_COMPARED)}


def _digest(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _evaluation() -> None:
    """Evaluate two models in the present folder; every path in its files is relative."""
    for seed, name in enumerate(("start", "trained")):
        small_llama(seed).save_pretrained(f"models/{name}")
        word_tokenizer().save_pretrained(f"models/{name}")
    rows = write_hh_rows(Path("rows.jsonl"), 24)
    models = {name: f"models/{name}" for name in ("start", "trained")}
    server = CountingJudge()
    try:
        config = write_config(Path("evaluation"), models, rows, server.base_url, dataset={"max_samples": 16})
        os.environ["OPENAI_API_KEY"] = "sk-of-no-server"
        if evaluate.main(["--config", str(config)]) != 0:
            raise SystemExit("the evaluation failed")
    finally:
        server.close()


def main(folder: Path) -> None:
    """Write the golden files with the version on the path."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["DYNAMIC_DPO_CACHE"] = str(Path("cache").resolve())
    golden = {"arithmetic": arithmetic(), "runs": {name: measure(name, f"scratch/{name}") for name in RUNS}}
    Path("runs.json").write_text(json.dumps(golden, indent=1, allow_nan=False))
    stop_half_way("stopped")
    _evaluation()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
