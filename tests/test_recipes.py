"""The recipes of docs/architecture.md, followed to the letter on a copy of the package.

A block of Python whose first line is ``# FILE`` is a new file; a block of ``diff`` adds its ``+`` lines to the file
that its first line names, behind the lines before them; a session (``>>>``) shows that nothing else was needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from places import ROOT, SOURCE, TESTS

PAGE = ROOT / "docs" / "architecture.md"
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
HEADINGS = ("A method", "A judge", "A section of the report", "A format of preference data")


class Recipe(NamedTuple):
    """What one recipe says: new files, added lines, and the session that shows what came of it."""

    new_files: dict[str, str]
    additions: list[tuple[str, list[str]]]
    sessions: str


def recipe(heading: str, page: str) -> Recipe:
    (section,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, flags=re.M | re.S)
    found = Recipe({}, [], "")
    for fence in FENCE.finditer(section):
        body = fence["body"]
        first, _, rest = body.partition("\n")
        if fence["language"] == "diff":
            found.additions.append((first, rest.splitlines()))
        elif body.startswith(">>> "):
            found = found._replace(sessions=f"{found.sessions}\n{body}")
        elif first.startswith("# "):
            found.new_files[first.removeprefix("# ")] = rest
    return found


def add_lines(path: Path, lines: list[str]) -> None:
    """Put each run of ``+`` lines behind the line that precedes it; that line must be there once."""
    text, anchor = path.read_text(encoding="utf-8"), ""
    for is_new, run in groupby(lines, key=lambda line: line.startswith("+")):
        block = "".join(f"{line[1:]}\n" for line in run)
        if is_new:
            text = text.replace(anchor, anchor + block)
        else:
            anchor = block
            assert text.count(anchor) == 1, f"{path.name} holds {anchor!r} {text.count(anchor)} times"
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def copy_of_the_package(tmp_path: Path) -> Path:
    for folder in ("src", "configs", "docs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    return tmp_path


def in_the_copy(copy: Path, *arguments: str, seconds: int = 300) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy / "src"), str(TESTS), str(copy)])}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-4000:]}{ended.stderr[-4000:]}"
    return ended.stdout


def test_every_file_and_folder_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", FENCE.sub("", PAGE.read_text(encoding="utf-8"))))
    assert len(named) > 30
    rooms = (ROOT, SOURCE, SOURCE / "eval")
    assert {name for name in named if not any((room / name).exists() for room in rooms)} == set()


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_recipe_works_as_it_stands(heading: str, copy_of_the_package: Path) -> None:
    said = recipe(heading, PAGE.read_text(encoding="utf-8"))
    assert said.sessions
    for name, text in said.new_files.items():
        path = copy_of_the_package / name
        assert not path.exists(), name
        path.write_text(text, encoding="utf-8")
    for name, lines in said.additions:
        add_lines(copy_of_the_package / name, lines)
    # A recipe is short: one file, or functions in the file that lists them, and a line.
    assert len(said.new_files) <= 1
    assert {name for name, _ in said.additions} | set(said.new_files), heading

    session = copy_of_the_package / "session.txt"
    session.write_text(said.sessions, encoding="utf-8")
    run = (
        "import doctest, pathlib, dynamic_dpo\n"
        f"assert pathlib.Path(dynamic_dpo.__file__).is_relative_to({str(copy_of_the_package)!r})\n"
        "ended = doctest.testfile('session.txt', module_relative=False, encoding='utf-8')\n"
        "assert ended.attempted\n"
        "raise SystemExit(ended.failed)"
    )
    in_the_copy(copy_of_the_package, "-c", run)


def test_without_its_lines_a_recipe_fails(copy_of_the_package: Path) -> None:
    """The sessions look at the copy: what they show is not there before."""
    session = copy_of_the_package / "session.txt"
    for heading in HEADINGS:
        session.write_text(recipe(heading, PAGE.read_text(encoding="utf-8")).sessions, encoding="utf-8")
        run = (
            "import doctest, io, contextlib\n"
            "with contextlib.redirect_stdout(io.StringIO()):\n"
            "    ended = doctest.testfile('session.txt', module_relative=False, encoding='utf-8')\n"
            "assert ended.failed, 'the session passes without the recipe'"
        )
        in_the_copy(copy_of_the_package, "-c", run)
