"""``dynamic-dpo report``: one self-contained page and pictures from the folder of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli.common import make_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dynamic-dpo report",
        "Write report.html and plots/ from the folder of a run.",
        example="dynamic-dpo report runs/dpo",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run: the save_dir of train-dpo")
    parser.add_argument("--out", metavar="FILE", help="where to write the page; default: RUN/report.html")
    parser.add_argument("--title", help="heading of the page")
    arguments = parser.parse_args(list(argv))
    from dynamic_dpo.pages.text import cleaned
    from dynamic_dpo.runs.page import write_run_report

    path = write_run_report(arguments.run, out=arguments.out, title=arguments.title)
    # A folder's name may hold bytes that no terminal can print, or that it would act on.
    print(cleaned(str(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
