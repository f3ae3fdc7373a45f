"""``dynamic-dpo judge``: the stage ``judge`` of an evaluation alone, and the report of what it gave."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli import evaluate
from dynamic_dpo.cli.common import configured_parser, read_settings, run_command

DESCRIPTION = "Judge the outputs of an evaluation whose models have written, and report win rates."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser(
        "dynamic-dpo judge",
        DESCRIPTION,
        example=f"dynamic-dpo judge {evaluate.EXAMPLE}",
        notes=evaluate.EXIT_CODES,
    )
    settings = read_settings(parser, argv, keys=evaluate.keys)
    return 0 if settings is None else evaluate.evaluate(settings, ("judge", "report"))


if __name__ == "__main__":
    sys.exit(main())
