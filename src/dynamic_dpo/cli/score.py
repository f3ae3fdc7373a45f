"""``dynamic-dpo score``: rewards and margins of a trained policy for given pairs, one JSON line a pair."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.files import SUMMARY

DESCRIPTION = "Score preference pairs with a trained policy and its reference."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(list(argv))
    settings = _from_config(arguments.config) if arguments.config else {}
    given = {
        "model": arguments.model,
        "reference": arguments.reference,
        "data": arguments.data,
        "beta": arguments.beta,
        "subset": arguments.subset,
        "max_length": arguments.max_length,
        "chat_template": arguments.chat_template,
        "device": arguments.device,
        "precision": arguments.precision,
    }
    settings |= {key: value for key, value in given.items() if value is not None}
    for key in ("model", "data"):
        if not settings.get(key):
            raise ConfigError(f"score needs --{key}, or --config with the file of the training")
    from dynamic_dpo.cli.build_evaluation import require_statistics

    require_statistics("score")
    from dynamic_dpo.eval.scoring.metrics import summarise_margins
    from dynamic_dpo.eval.scoring.pairs import score_pairs, write_scores

    beta = settings.setdefault("beta", 0.1)
    models = settings.pop("model"), settings.pop("reference", None)
    found = score_pairs(*models, settings.pop("data"), **settings)
    path = write_scores(arguments.out, found.pairs)
    figures = summarise_margins(found.margins, beta=beta)
    low, high = figures.accuracy_interval
    print(f"{path}: {len(found.pairs)} pairs")
    print(f"accuracy {figures.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})")
    print(
        f"mean margin {figures.mean_margin:+.3f} ± {figures.margin_error:.3f} nats, "
        f"mean reward margin {figures.reward_margin:+.4f} at beta {beta:g}"
    )
    if found.quarantined:
        print(f"left out: {json.dumps(found.quarantined)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "dynamic-dpo score",
        DESCRIPTION,
        example="dynamic-dpo score --config configs/dpo.yaml --model runs/dpo runs/scores.jsonl",
    )
    parser.add_argument("out", metavar="OUT.jsonl", help="file to write, one line a pair")
    parser.add_argument(
        "--config", metavar="FILE", help="file of the training: gives models, data, lengths and beta"
    )
    parser.add_argument("--model", metavar="MODEL", help="the policy: hub name, folder, adapter, .gguf")
    parser.add_argument("--reference", metavar="MODEL", help="the reference; may be left out for an adapter")
    parser.add_argument("--data", metavar="DATA", help="preference pairs: file, folder or hub name")
    parser.add_argument("--subset", metavar="SPLIT", help="split with an optional slice; default: train")
    parser.add_argument(
        "--beta", type=float, help="scale of the rewards; default: 0.1, or the run's last beta"
    )
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="default: 512")
    parser.add_argument("--chat-template", action="store_true", default=None, help="render text as chats")
    parser.add_argument("--device", help="cpu, cuda …; default: a GPU where there is one")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="of both models; default: float32"
    )
    return parser


def _from_config(path: str) -> dict[str, Any]:
    """Return what the file of a training says about its policy, its reference and its validation data."""
    from dynamic_dpo.config import get_training_config, load_yaml

    config = get_training_config(load_yaml(path))
    data, training = config.dataset, config.dpo_training
    folder = Path(training.save_dpo_dir or training.save_dir)
    return {
        "model": str(folder),
        "reference": config.reference_name,
        "data": data.eval_dataset_name or data.dataset_name,
        "subset": "train" if data.eval_dataset_name else data.subset,
        "chat_template": data.chat_template,
        "max_length": data.max_len,
        "max_prompt_length": data.max_prompt_length,
        "max_completion_length": data.max_completion_length,
        "truncation_mode": data.truncation_mode,
        "answer_tokens": data.answer_tokens,
        "quarantine_max_share": data.quarantine_max_share,
        "beta": _last_beta(Path(training.save_dir)) or config.beta_update.beta_0,
    }


def _last_beta(folder: Path) -> float | None:
    """Return the beta with which a run ended, if its summary is there."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    beta = summary.get("beta_final")
    return float(beta) if isinstance(beta, int | float) and beta > 0 else None


if __name__ == "__main__":
    sys.exit(main())
