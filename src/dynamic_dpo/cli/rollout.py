"""``dynamic-dpo rollout``: from prompts to pairs: sample, label, pair; or join the folders of shards."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import configured_parser, read_settings, run_command
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.files import CONFIG

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig
    from dynamic_dpo.rollouts.plan import RolloutPlan

logger = logging.getLogger("dynamic_dpo")

DESCRIPTION = (
    "Turn prompts into preference pairs: sample responses, label them, pair them. Resumes by itself. With --merge, "
    "join the folders of shards."
)
STAGE_NAMES = ("prepare", "sample", "label", "pair")
BUDGET_STOPPED = 3
"""Exit code where a limit of the judge's budget left comparisons without a verdict; pairs are made of the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def roll_out(config: TrainingConfig, stages: Sequence[str] = STAGE_NAMES) -> int:
    """Run the stages of a rollout, each doing what is missing.

    Args:
        config: Checked settings.
        stages: Which, in their order.

    Returns:
        0, or `BUDGET_STOPPED`.

    Raises:
        ConfigError: If settings cannot be carried out, or the folder holds answers that other settings made.
        DataError: If prompts or files cannot be used.
        ModelError: If a model cannot be used.
        JudgeError: If scorer or judge fail; what is there stays.
    """
    from dynamic_dpo.cli.build_rollout import build_plan, check_judge
    from dynamic_dpo.rollouts.folder import RolloutFolder
    from dynamic_dpo.rollouts.stages import run_stages

    plan = build_plan(config)
    if "label" in stages:
        check_judge(config)
    folder = RolloutFolder(plan)
    config.save(plan.folder / CONFIG)
    result = run_stages(folder, stages)
    if result.pairs is not None:
        _push(config, result.pairs)
    return BUDGET_STOPPED if result.stopped else 0


def merge(folders: Sequence[str], out: str) -> int:
    """Join the folders of shards; returns the exit code.

    Raises:
        ConfigError: If a folder is no shard, one is missing, or they were made with different settings.
        DataError: If a shard is unfinished or a file damaged.
    """
    from dynamic_dpo.rollouts.merge import merge_shards

    shards = [_plan_of_shard(Path(folder)) for folder in folders]
    first = shards[0][0]
    for (settings, _), folder in zip(shards, folders, strict=True):
        if _without_place(settings) != _without_place(first):
            raise ConfigError(
                f"{folder} was made with other settings than {folders[0]}: compare their {CONFIG}"
            )
    summary = merge_shards([plan for _, plan in shards], Path(out))
    from dynamic_dpo.config import get_training_config

    whole = {**first, "rollout": {**first["rollout"], "shard": None, "output_dir": out}}
    config = get_training_config(whole)
    config.save(Path(out) / CONFIG)
    return BUDGET_STOPPED if summary.stopped else 0


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser(
        "dynamic-dpo rollout",
        DESCRIPTION,
        example="dynamic-dpo rollout --config configs/rollout.yaml rollout.limit=64",
    )
    parser.add_argument(
        "--stage",
        choices=STAGE_NAMES,
        help="run one stage alone; default: all of them, each doing what is missing",
    )
    parser.add_argument("--merge", nargs="+", metavar="DIR", help="folders of all shards, to be joined")
    parser.add_argument("--out", metavar="DIR", help="with --merge: folder of the whole")
    arguments = parser.parse_args(list(argv))
    if arguments.merge:
        return _merge_command(arguments)
    settings = read_settings(parser, argv, keys=keys)
    if settings is None:
        return 0
    if arguments.out:
        raise ConfigError("--out goes with --merge; the folder of a rollout is rollout.output_dir")
    from dynamic_dpo.config import get_training_config

    return roll_out(get_training_config(settings), [arguments.stage] if arguments.stage else STAGE_NAMES)


def _merge_command(arguments: argparse.Namespace) -> int:
    if not arguments.out:
        raise ConfigError("--merge needs --out DIR, the folder of the whole")
    if arguments.config or arguments.stage or arguments.overrides:
        raise ConfigError(
            "--merge takes the settings of the shards: leave out --config, --stage and KEY=VALUE"
        )
    return merge(arguments.merge, arguments.out)


def _plan_of_shard(folder: Path) -> tuple[dict[str, Any], RolloutPlan]:
    from dynamic_dpo.cli.build_rollout import build_plan
    from dynamic_dpo.config import get_training_config, load_yaml

    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is no shard of a rollout: it has no {CONFIG}")
    settings = load_yaml(folder / CONFIG)
    # A folder may have been moved since.
    settings["rollout"]["output_dir"] = str(folder)
    return settings, build_plan(get_training_config(settings))


def _without_place(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "rollout": {**settings["rollout"], "shard": None, "output_dir": None}}


def _push(config: TrainingConfig, pairs: Path) -> None:
    section = config.rollout
    if section.push_to_hub:
        from dynamic_dpo.rollouts.hub import push_pairs

        address = push_pairs(pairs, str(section.hub_dataset_id), private=section.hub_private)
        logger.info("the pairs: %s", address)


def keys() -> str:
    """Return the description of all keys, for ``--help-all``."""
    from dynamic_dpo.config.key_reference import render_help

    return (
        "exit codes: 0 done, 1 failed, 2 a mistake in the settings or files, "
        f"{BUDGET_STOPPED} stopped at the judge's budget with pairs of what there is, "
        "129, 130 and 143 interrupted\n\n" + render_help()
    )


if __name__ == "__main__":
    sys.exit(main())
