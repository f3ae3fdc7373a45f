"""Walls of the house that an import linter cannot see."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from places import SOURCE

# The engine and the trainers that take any method: neither knows which methods there are. Each of the others is made
# for one method, or for none.
OF_ONE_METHOD = ("__init__.py", "risk_dpo_trainer.py", "trl_callback.py", "sft_trainer.py")
METHODLESS = [
    *(path for path in (SOURCE / "trainers").rglob("*.py") if path.name not in OF_ONE_METHOD),
    *(SOURCE / "engine").glob("*.py"),
]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", ["loss", "methods"])
def test_loss_and_methods_know_no_ranks(folder: str) -> None:
    offenders = [
        str(path.relative_to(SOURCE))
        for path in (SOURCE / folder).rglob("*.py")
        if any(name.startswith("torch.distributed") for name in _imports(path))
    ]
    assert offenders == []


def test_trainer_and_engine_name_no_method() -> None:
    from dynamic_dpo.methods import METHODS

    assert len(METHODLESS) > 25
    for path in METHODLESS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {name.rsplit(".", 1)[-1] for name in _imports(path) if "dynamic_dpo.methods" in name}
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name, method in METHODS.items():
            assert method.__name__ not in names | imported, f"{path.name} names {method.__name__}"
            assert name not in strings, f"{path.name} asks for {name!r}"


def test_no_word_of_trainer_or_engine_is_a_methods_name() -> None:
    from dynamic_dpo.methods import METHODS

    for path in METHODLESS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # A docstring may explain.
        explaining = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        words: set[str] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if id(node) not in explaining:
                    words |= set(re.findall(r"[\w-]+", text))
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                    words.add(name)
        assert words.isdisjoint(METHODS), f"{path.name} knows {sorted(words & set(METHODS))}"


def test_every_method_stands_under_its_own_name() -> None:
    from dynamic_dpo.methods import METHODS

    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_optional_packages_are_loaded_only_when_used() -> None:
    optional = ("openai", "vllm", "matplotlib", "bitsandbytes", "wandb")
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert not [n for n in names if n.split(".")[0] in optional], f"{path} imports {names} at the top"
