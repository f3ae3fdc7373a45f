"""``evaluate``: checks an evaluation file. This version runs no evaluation, and says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli.common import configured_parser, read_settings, run_command
from dynamic_dpo.errors import DynamicDPOError

DESCRIPTION = "Check the settings of an evaluation (this version does not run one)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    from dynamic_dpo.config import get_evaluation_config

    settings = read_settings(configured_parser("evaluate", DESCRIPTION), argv, keys=_keys)
    if settings is None:
        return 0
    get_evaluation_config(settings)
    raise DynamicDPOError(
        "the settings are valid, but this version runs no evaluation: use dynamic_dpo.eval.generate and "
        "dynamic_dpo.eval.GPT4Oracle from Python, or a later version"
    )


def _keys() -> str:
    from dynamic_dpo.config.reference import render_help
    from dynamic_dpo.config.schema import EvaluationConfig

    return render_help(EvaluationConfig)


if __name__ == "__main__":
    sys.exit(main())
