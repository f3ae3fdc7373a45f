"""``dynamic-dpo inspect-data``: what is in the data of a training, before hours are spent on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynamic_dpo.cli.common import configured_parser, read_settings, run_command
from dynamic_dpo.errors import ConfigError

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig

DESCRIPTION = (
    "Look at the preference data of a training file before training on it: counts, lengths, truncation, repetitions, "
    "refusals, prompts of an evaluation among it, and pairs as the model sees them. Writes a page."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser(
        "dynamic-dpo inspect-data",
        DESCRIPTION,
        example="dynamic-dpo inspect-data --config configs/dpo.yaml --out runs/inspect-data",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="runs/inspect-data", help="folder of the page; default: %(default)s"
    )
    parser.add_argument(
        "--evaluation",
        metavar="DATA[:SPLIT]",
        action="append",
        default=[],
        help="prompts that must not be trained on: file, folder or hub name; split test, of files train; repeatable",
    )
    parser.add_argument(
        "--ngram",
        type=int,
        default=8,
        metavar="WORDS",
        help="words in a row that count as an overlap; default: 8",
    )
    parser.add_argument(
        "--decontaminate",
        metavar="OUT.jsonl",
        help="write the rows that no prompt of --evaluation was found in, as they are",
    )
    parser.add_argument(
        "--refusals",
        metavar="FILE",
        help="regular expressions of a refusal, one a line; default: some in English",
    )
    parser.add_argument(
        "--similarity",
        type=int,
        default=0,
        metavar="PAIRS",
        help="compare the policy's states for the answers of so many pairs (CHES); default: 0, which loads no model",
    )
    settings = read_settings(parser, argv, keys=_keys)
    if settings is None:
        return 0
    arguments = parser.parse_args(list(argv))
    for name, value, least in (("ngram", arguments.ngram, 1), ("similarity", arguments.similarity, 0)):
        if value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    if arguments.decontaminate and not arguments.evaluation:
        raise ConfigError("--decontaminate needs --evaluation DATA: the prompts that must not be trained on")
    from dynamic_dpo.config import get_training_config

    return inspect_data(
        get_training_config(settings),
        arguments.out,
        evaluation=arguments.evaluation,
        ngram=arguments.ngram,
        decontaminate=arguments.decontaminate,
        refusals=arguments.refusals,
        similarity=arguments.similarity,
    )


def inspect_data(
    config: TrainingConfig,
    out: str,
    *,
    evaluation: Sequence[str] = (),
    ngram: int = 8,
    decontaminate: str | None = None,
    refusals: str | None = None,
    similarity: int = 0,
) -> int:
    """Inspect the data of a training; returns the exit code.

    Raises:
        ConfigError: If no data set is named.
        DataError: If a set or the file of patterns cannot be used.
        ModelError: If tokenizer or model cannot be loaded.
    """
    data = config.dataset
    if not data.dataset_name and not data.mixture:
        raise ConfigError("dataset.dataset_name is required: a hub name, or a local file or folder of rows")
    if decontaminate and data.mixture:
        raise ConfigError(
            "--decontaminate writes the rows of one set: give dataset.dataset_name, one set at a time"
        )
    from dynamic_dpo.cli.build_training import prepare_pairs
    from dynamic_dpo.inspection.run import InspectionSettings, inspect_preferences, write_others
    from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model
    from dynamic_dpo.rollouts.filters import read_patterns

    settings = InspectionSettings(ngram=ngram, similar_pairs=similarity, seed=data.seed)
    if refusals is not None:
        settings = settings._replace(refusals=read_patterns(refusals))
    source = resolve_model(config.policy_name)
    tokenizer = load_tokenizer(source)
    found = inspect_preferences(
        lambda folder: prepare_pairs(config, tokenizer, folder),
        data.dataset_name or ", ".join(data.mixture),
        tokenizer,
        out,
        evaluation=_prompts(evaluation),
        open_model=(lambda: load_model(source).eval()) if similarity else None,
        settings=settings,
    )
    print("\n".join(f"- {sentence}" for sentence in found.findings) or "nothing stands out")
    if decontaminate:
        count = write_others(str(data.dataset_name), data.subset, found.overlapping, decontaminate)
        print(f"{decontaminate}: {count} rows, {len(found.overlapping)} left out")
    print(found.page)
    return 0


def _prompts(sets: Sequence[str]) -> list[str]:
    """Return the texts of the prompts of evaluations: what the user says, turn by turn."""
    from pathlib import Path

    from dynamic_dpo.eval import load_prompts

    texts = []
    for name in sets:
        path, colon, split = name.rpartition(":")
        if not colon or Path(name).exists():
            path, split = name, "train" if Path(name).exists() else "test"
        for record in load_prompts(path, split=split).prompts:
            said = [message["content"] for message in record.messages if message["role"] == "user"]
            texts += said or [message["content"] for message in record.messages]
    return texts


def _keys() -> str:
    from dynamic_dpo.config.key_reference import render_help

    return render_help()


if __name__ == "__main__":
    sys.exit(main())
