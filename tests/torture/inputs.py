"""Foul inputs at full counts: margins through every controller, rows through every reader, hostile files."""

from __future__ import annotations

import re
import subprocess
import sys

from places import TESTS


def foul_margins(count: int) -> tuple[int, list[str]]:
    """Put ``count`` random batches through each controller; return how many there are, and what went wrong."""
    from test_methods_fuzz import CONTROLLERS, put_through

    wrong = []
    for name in CONTROLLERS:
        try:
            put_through(name, count, seed=1)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    return len(CONTROLLERS), wrong


def run_tests(*selection: str) -> tuple[int, list[str]]:
    """Run tests of the suite in a process of their own; return how many passed, and the names of those that did not.

    Raises:
        RuntimeError: If none was run.
    """
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfE",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            *selection,
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", ended.stdout)
    wrong = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    if passed is None and not wrong:
        raise RuntimeError(f"no test was run: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return int(passed.group(1)) if passed else 0, wrong
