"""Modules that can be called: whatever is imported in whatever order, a name is the module and its function."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

from dynamic_dpo.utils.callable_module import CallableModule, make_module_callable


@pytest.fixture
def lunch() -> Iterator[types.ModuleType]:
    module = sys.modules["lunch"] = types.ModuleType("lunch")
    make_module_callable("lunch", "serve")
    yield module
    del sys.modules["lunch"]


def test_a_call_of_the_module_is_a_call_of_its_function(lunch: CallableModule) -> None:
    lunch.serve = lambda dish, *, hot=True: (dish, hot)
    assert lunch("soup", hot=False) == lunch.serve("soup", hot=False) == ("soup", False)


def test_a_function_that_is_replaced_later_is_the_one_called(lunch: CallableModule) -> None:
    lunch.serve = lambda: "before"
    lunch.serve = lambda: "after"
    assert lunch() == "after"


def test_the_signature_is_the_functions(lunch: CallableModule) -> None:
    lunch.serve = lambda dish, *, hot=True: None
    assert str(inspect.signature(lunch)) == "(dish, *, hot=True)"


def test_a_module_without_its_function_says_which_name_is_missing(lunch: CallableModule) -> None:
    with pytest.raises(AttributeError, match="no attribute 'serve'"):
        lunch()


def test_the_module_stays_a_module_and_shows_that_it_can_be_called(lunch: CallableModule) -> None:
    assert isinstance(lunch, types.ModuleType)
    assert callable(lunch)
    assert repr(lunch) == "<callable module 'lunch'>"


@pytest.mark.parametrize(
    "imports",
    [
        "from dynamic_dpo.loss import dpo_loss",
        "from dynamic_dpo.loss.dpo_loss import dpo_loss",
        "import dynamic_dpo.loss.dpo_loss; from dynamic_dpo.loss import dpo_loss",
        "from dynamic_dpo import dpo_loss; import dynamic_dpo.loss.dpo_loss",
    ],
)
def test_a_name_of_both_kinds_can_be_called_in_every_order_of_imports(imports: str) -> None:
    code = f"{imports}\nimport torch\nx = torch.zeros(1)\nprint(len(dpo_loss(x, x, x, x, 0.1)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "3"
