"""``dynamic-dpo iterate``: rounds of rollout, training and evaluation, each on what the one before has left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamic_dpo.cli.common import configured_parser, read_settings, run_command
from dynamic_dpo.runs.files import CONFIG

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import LoopConfig
    from dynamic_dpo.loops.rounds import LoopResult

DESCRIPTION = (
    "Run rounds of rollout, training and evaluation: the model answers prompts, pairs are made of its answers, it is "
    "trained on them and compared with what it was. Resumes by itself."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def iterate(config: LoopConfig) -> LoopResult:
    """Run the rounds of a loop that are missing.

    Args:
        config: Checked settings.

    Returns:
        What the loop has come to.

    Raises:
        ConfigError: If settings cannot be carried out, or a round was made with others.
        DataError: If a file that a round has left is not there, or another one.
        StageError: If a stage fails.
        JudgeError: If a judge has no key.
    """
    from dynamic_dpo.cli.build_iteration import build_plan
    from dynamic_dpo.loops.rounds import run_loop

    plan = build_plan(config)
    config.save(plan.folder / CONFIG)
    return run_loop(plan)


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser(
        "dynamic-dpo iterate",
        DESCRIPTION,
        example="dynamic-dpo iterate --config configs/iterate.yaml iterate.rounds=3",
    )
    settings = read_settings(parser, argv, keys=keys)
    if settings is None:
        return 0
    from dynamic_dpo.config import get_loop_config

    result = iterate(get_loop_config(settings))
    print(Path(result.page))
    return 0


def keys() -> str:
    """Return the description of all keys, for ``--help-all``."""
    from dynamic_dpo.config.key_reference import render_help
    from dynamic_dpo.config.schema import LoopConfig

    return (
        "exit codes: 0 done, 1 a stage failed, 2 a mistake in the settings or files, 129, 130 and 143 interrupted\n\n"
        + render_help(LoopConfig)
    )


if __name__ == "__main__":
    sys.exit(main())
