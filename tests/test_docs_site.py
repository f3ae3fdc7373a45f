"""The documentation site: links of the project lead to the same things on the site, formulas and code are kept."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from dynamic_dpo.cli.main import COMMANDS
from dynamic_dpo.runs.alarms import AlarmConfig
from places import ROOT
from test_docs import GENERATED

NAVIGATED = ROOT / "mkdocs.yml"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    path = ROOT / "scripts" / "docs_site.py"
    spec = importlib.util.spec_from_file_location("docs_site", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_site"] = module
    spec.loader.exec_module(module)
    return module


def test_the_hooks_examples_hold(hooks: ModuleType) -> None:
    import doctest

    found = doctest.testmod(hooks)
    assert (found.failed, found.attempted >= 3) == (0, True)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("method.md", "[a](methods.md#x)", "[a](methods.md#x)"),
        ("guides/python.md", "[a](../../README.md)", "[a](../index.md)"),
        ("start/own-data.md", "[a](../data.md)", "[a](../data.md)"),
        ("changes.md", "[a](docs/trl.md#b) and [b](README.md)", "[a](trl.md#b) and [b](index.md)"),
        ("project/examples/sentiment/README.md", "![p](../p.png)", "![p](../p.png)"),
        ("rollouts.md", "[a](../configs/rollout.yaml)", "[a](project/configs/rollout.yaml)"),
        ("project/benchmarks/README.md", "[a](../docs/engine.md)", "[a](../../engine.md)"),
        # A folder is no page.
        ("results.md", "[a](../experiments/bandit)", "[a](architecture.md)"),
        # What is no link of ours stays.
        ("method.md", "[a](https://example.org/x.md) [b](#here)", "[a](https://example.org/x.md) [b](#here)"),
        ("method.md", "`[a](../README.md)`", "`[a](../README.md)`"),
        ("method.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_a_link_leads_to_the_same_file_on_the_site(
    hooks: ModuleType, page: str, link: str, expected: str
) -> None:
    assert hooks.with_own_links(link, page) == expected


def test_every_file_that_a_page_links_to_is_on_the_site(hooks: ModuleType) -> None:
    linked = hooks.linked_files()
    assert {"configs/rollout.yaml", "benchmarks/README.md"} <= linked
    assert all((ROOT / path).is_file() for path in linked)


def test_formulas_become_mathml_and_code_stays(hooks: ModuleType) -> None:
    text = "Let $x_i$ be.\n\n```math\n\\frac{a}{b}\n```\n\n```bash\necho $HOME $PATH\n```\n\n`$y$`\n"
    shown = hooks.with_formulas(text)
    assert shown.count("<math") == 2
    assert "<mfrac>" in shown
    assert "echo $HOME $PATH" in shown
    assert "`$y$`" in shown
    # No page of ours has a dollar that is no formula.
    for page in (ROOT / "docs").rglob("*.md"):
        prose = hooks._CODE.sub("", page.read_text(encoding="utf-8"))
        assert prose.count("$") % 2 == 0, page


def test_every_command_and_every_public_name_has_a_place(hooks: ModuleType) -> None:
    page = hooks.python_page()
    for package in hooks.PACKAGES:
        for name in importlib.import_module(package).__all__:
            assert name.startswith("__") or f"::: {package}.{name}\n" in page
    assert {"train-dpo", "strength"} <= COMMANDS.keys()
    assert "dynamic-dpo strength" in hooks.help_of("strength")


def test_every_alarm_has_a_line_of_cause_and_cure() -> None:
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    names = {one.name for one in fields(AlarmConfig)} - {"action"}
    assert len(names) >= 10
    assert {name for name in names if f"| `{name}` |" not in page} == set()


def test_every_page_is_found_from_the_navigation(hooks: ModuleType) -> None:
    def pages(entry: object) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        values = entry.values() if isinstance(entry, dict) else entry
        return set().union(*(pages(value) for value in values))  # type: ignore[attr-defined]

    navigation = YAML(typ="safe").load(NAVIGATED.read_text(encoding="utf-8"))["nav"]
    generated = {hooks.COMMANDS_PAGE, hooks.PYTHON_PAGE, *hooks.PAGES_OF.values()}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in Path(ROOT / "docs").rglob("*.md")}
    assert pages(navigation) == generated | written
    assert generated == GENERATED
