"""Tries every family and writes the table of docs/models.md; ends with an error if one is wrong or aborted.

Usage: ``PYTHONPATH=tests python -m families [--only NAME ...] [--workers 2] [--seconds 90]``. With ``--only`` nothing
is written.
"""

from __future__ import annotations

import argparse
import sys

from families.configurations import family_names
from families.family_runs import try_families
from families.family_table import is_wrong, line, page
from places import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="families to try instead of all")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=90, help="time that a family may take")
    options = parser.parse_args(arguments)
    names = options.only or family_names()
    outcomes = try_families(names, workers=options.workers, seconds=options.seconds)
    for name, outcome in outcomes.items():
        print(line(name, outcome), flush=True)
    if not options.only:
        (ROOT / "docs" / "models.md").write_text(page(outcomes), encoding="utf-8")
    wrong = {name: outcome for name, outcome in outcomes.items() if is_wrong(outcome)}
    for name, outcome in wrong.items():
        print(f"{name}: {outcome.fault or outcome}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
