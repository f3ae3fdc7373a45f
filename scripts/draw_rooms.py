"""Draws the rooms of the package into docs/architecture.md, from the code's own imports.

``python scripts/draw_rooms.py`` writes pictures and tables between the page's markers; ``--check`` only says whether
they are those of the code. Imports for types alone count: a reader follows them too. An arrow that longer
ways imply is left out: what remains is which room stands directly on which.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = "dynamic_dpo"
# Each picture is a package whose sub-packages are its rooms.
PICTURES = {"house": PACKAGE, "evaluation": f"{PACKAGE}.eval"}


def folder_of(package: str) -> Path:
    return ROOT / "src" / Path(*package.split("."))


def rooms_of(package: str) -> list[str]:
    """Return the sub-packages of a package, by name."""
    return sorted(path.parent.name for path in folder_of(package).glob("*/__init__.py"))


def purpose_of(package: str) -> str:
    """Return the first sentence of a package's docstring."""
    source = (folder_of(package) / "__init__.py").read_text(encoding="utf-8")
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    return re.split(r"(?<=[.])\s", text)[0].rstrip(".").replace("``", "`")


def standing_on(package: str, rooms: Iterable[str]) -> networkx.DiGraph:
    """Return an edge from each room to those it imports from, less those that longer ways imply."""
    imports = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False)
    names = [f"{package}.{room}" for room in rooms]
    graph = networkx.DiGraph()
    graph.add_nodes_from(names)
    members = {name: {name, *imports.find_descendants(name)} for name in names}
    for upper in names:
        imported = {
            below for module in members[upper] for below in imports.find_modules_directly_imported_by(module)
        }
        graph.add_edges_from(
            (upper, lower) for lower in names if lower != upper and imported & members[lower]
        )
    if not networkx.is_directed_acyclic_graph(graph):
        sys.exit(f"rooms of {package} stand on each other in a circle: {networkx.find_cycle(graph)}")
    return networkx.transitive_reduction(graph)


def picture(package: str) -> str:
    """Return a Mermaid flowchart of the rooms of a package, and a table of what each is for."""
    rooms = rooms_of(package)
    graph = standing_on(package, rooms)
    short = {f"{package}.{room}": room for room in rooms}
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {room}["{room}/"]' for room in rooms]
    lines += sorted(f"    {short[upper]} --> {short[lower]}" for upper, lower in graph.edges)
    lines += ["```", "", "| Room | What is in it |", "|---|---|"]
    lines += [f"| `{room}/` | {purpose_of(f'{package}.{room}')} |" for room in rooms]
    return "\n".join(lines)


def drawn(page: str) -> str:
    """Return the page with everything between its markers drawn anew."""
    for name, package in PICTURES.items():
        begin, end = f"<!-- rooms: {name} -->", "<!-- end of rooms -->"
        if page.count(begin) != 1:
            sys.exit(f"{PAGE.name} must hold the line {begin} once, found {page.count(begin)}")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{picture(package)}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page is out of date"
    )
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = drawn(old)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run make rooms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
