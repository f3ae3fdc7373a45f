"""Hooks of the documentation site: pages that are generated, links that leave `docs/`, formulas.

MkDocs calls the functions by their names (its key ``hooks``); `make docs-site` runs it.
"""

from __future__ import annotations

import importlib
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Packages whose ``__all__`` is what users may import, in the order of the page.
PACKAGES = {
    "dynamic_dpo": "What most scripts need.",
    "dynamic_dpo.config": "Settings as files hold them, checked.",
    "dynamic_dpo.data": "From rows to tokenised pairs and conversations.",
    "dynamic_dpo.methods": "The seam that every method is written to; the table of methods.",
    "dynamic_dpo.loss": "The losses and the risk test as functions of tensors and numbers.",
    "dynamic_dpo.eval": "Generation, judges, comparisons and the report.",
    "dynamic_dpo.lab": "Controllers of beta on margins of a known law, without a model.",
}
COMMANDS_PAGE, PYTHON_PAGE = "reference/commands.md", "reference/python.md"
# Files of the project's root that are pages of the site, and whose place a page of its own takes.
PAGES_OF = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "reporting.md"}
INSTEAD_OF = {"README.md": "index.md"}
# Where copies of other files lie that pages link to, and what stands for a folder.
COPIES, FOLDERS_PAGE = "project/", "architecture.md"
_LINK = re.compile(r"\]\((?P<target>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FORMULA = re.compile(r"^```math\n(?P<block>.*?)^```$|\$(?P<inline>[^$\n]+)\$", re.M | re.S)
_CODE = re.compile(r"^(?P<indent> *)```.*?^(?P=indent)```$|`[^`\n]+`", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files of the project that pages link to."""
    generated = {COMMANDS_PAGE: commands_page(), PYTHON_PAGE: python_page()}
    generated |= {page: (ROOT / path).read_text(encoding="utf-8") for path, page in PAGES_OF.items()}
    generated |= {
        place_of(path): (ROOT / path).read_text(encoding="utf-8") for path in sorted(linked_files())
    }
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the site has their files, and write formulas as MathML, which needs no script."""
    del config, files
    return with_formulas(with_own_links(markdown, page.file.src_uri))


def source_of(page: str) -> str:
    """Return which file of the project a page of the site is made of.

    Example:
        >>> source_of("method.md"), source_of("changes.md"), source_of("project/benchmarks/README.md")
        ('docs/method.md', 'CHANGELOG.md', 'benchmarks/README.md')
    """
    for path, place in PAGES_OF.items():
        if place == page:
            return path
    return page.removeprefix(COPIES) if page.startswith(COPIES) else f"docs/{page}"


def place_of(path: str) -> str:
    """Return where the site has a file of the project; for a folder, of which it has none, the pictures of the rooms.

    Example:
        >>> place_of("docs/method.md"), place_of("README.md"), place_of("configs/dpo.yaml"), place_of("src")
        ('method.md', 'index.md', 'project/configs/dpo.yaml', 'architecture.md')
    """
    if path in PAGES_OF or path in INSTEAD_OF:
        return PAGES_OF.get(path) or INSTEAD_OF[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return FOLDERS_PAGE if (ROOT / path).is_dir() else COPIES + path


def targets_of(markdown: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield the links of a page to files of the project, each with the file's path from the project's root."""
    code = [match.span() for match in _CODE.finditer(markdown)]
    for match in _LINK.finditer(markdown):
        if not any(start <= match.start() < end for start, end in code):
            yield match, posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))


def with_own_links(markdown: str, page: str) -> str:
    """Return a page whose links lead to where the site has their files.

    Args:
        markdown: The page, its links as they are in the project.
        page: Its path on the site.
    """
    parts, end = [], 0
    for match, path in targets_of(markdown, source_of(page)):
        place = posixpath.relpath(place_of(path), posixpath.dirname(page) or ".")
        parts += [markdown[end : match.start()], f"]({place}{match['anchor'] or ''})"]
        end = match.end()
    return "".join(parts) + markdown[end:]


@cache
def linked_files() -> frozenset[str]:
    """Return the files beside `docs/` that pages link to, and those that these link to."""
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages += PAGES_OF
    found: set[str] = set()
    while pages:
        page = pages.pop()
        for _, path in targets_of((ROOT / page).read_text(encoding="utf-8"), page):
            if place_of(path).startswith(COPIES) and path not in found and (ROOT / path).is_file():
                found.add(path)
                if path.endswith(".md"):
                    pages.append(path)
    return frozenset(found)


def with_formulas(markdown: str) -> str:
    r"""Return a page with its formulas as MathML; code is left alone.

    Example:
        >>> "<msub>" in with_formulas("Let $M_i$ be `$M_i$`."), "`$M_i$`" in with_formulas("`$M_i$`")
        (True, True)
    """
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        if match[0].lstrip().startswith("```math"):
            return match[0]
        kept.append(match[0])
        return f"\x00{len(kept) - 1}\x00"

    def formula(match: re.Match[str]) -> str:
        if match["block"] is not None:
            return f'<div class="formula">{convert(match["block"].strip(), display="block")}</div>\n'
        return convert(match["inline"])

    text = _FORMULA.sub(formula, _CODE.sub(keep, markdown))
    return re.sub("\x00(\\d+)\x00", lambda match: kept[int(match[1])], text)


def commands_page() -> str:
    """Return the page of commands, each with what it prints when it is asked for help."""
    sys.path.insert(0, str(ROOT / "src"))
    commands = importlib.import_module("dynamic_dpo.cli.main").COMMANDS
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        texts = dict(zip(commands, pool.map(help_of, commands), strict=True))
    parts = [
        "# Commands",
        "`train-dpo`, `train-sft` and `evaluate` are commands of their own as well as of `dynamic-dpo`. "
        "[Exit codes](../guides/troubleshooting.md#exit-codes) are the same for all.",
    ]
    for name, (_, meaning) in commands.items():
        parts += [
            f"## {name}",
            f"{meaning[0].upper()}{meaning[1:]}.",
            f"```text\n{texts[name].rstrip()}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """Return what a command prints when it is asked for help."""
    found = subprocess.run(
        [sys.executable, "-m", "dynamic_dpo.cli.main", command, "--help"],
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout


def python_page() -> str:
    """Return the page of public names, which the site fills from their docstrings."""
    sys.path.insert(0, str(ROOT / "src"))
    parts = ["# Python", "What scripts may import. Every name is loaded when it is first used."]
    for package, meaning in PACKAGES.items():
        parts += [f"## {package} {{ #{package} }}", meaning]
        for name in importlib.import_module(package).__all__:
            if not name.startswith("__"):
                parts.append(f"::: {package}.{name}\n    options:\n      heading_level: 3")
    return "\n\n".join(parts) + "\n"
