"""A new method is one new file and one line: files, help, documentation and the conformance suite find it by that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynamic_dpo.methods.table import METHODS, MethodTable
from places import ROOT, SOURCE, TESTS

SQUARE = '''"""The squared loss: every margin is pulled to 1/beta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, PairForward
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SquareConfig:
    """Settings of the squared loss."""

    beta: float = beta_setting()
    height: float = setting(1.0, "Loss of a pair with margin 0.", gt=0)

    def __post_init__(self) -> None:
        check_settings(self)


class Square(FixedBetaMethod):
    """The squared loss with a constant beta."""

    name = "square"
    Settings = SquareConfig

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return ``height (1 - min(beta h, 1))²`` of each pair. Shape [B]."""
        short = (1.0 - control.beta * forward.margins).relu()
        return control.weight * self.config.height * short.square()
'''
LINE = '        "square": "dynamic_dpo.methods.square:Square",\n'
LAST = '        "alpha_dpo": "dynamic_dpo.methods.alpha_dpo:AlphaDPO",\n'

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a method more: one file, one line."""
    copy = tmp_path_factory.mktemp("copy") / "dynamic_dpo"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "methods" / "square.py").write_text(SQUARE, encoding="utf-8")
    table = copy / "methods" / "table.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(LAST) == 1
    table.write_text(text.replace(LAST, LAST + LINE), encoding="utf-8")
    return copy


def run(package: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{TESTS}"}
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_files_choose_it_check_its_settings_and_let_a_controller_steer_it(package: Path) -> None:
    code = """if True:
        import sys
        from dynamic_dpo.config import get_training_config
        from dynamic_dpo.errors import ConfigError

        def config(**sections):
            return get_training_config({"policy_name": "m", **sections})

        print(config(method={"name": "square"}, square={"height": 3}).settings_of("square"))
        print(config(method={"loss": "square"}).method.loss)
        for sections in (
            {"method": {"name": "square"}, "square": {"height": 0}},
            {"method": {"name": "square"}, "square": {"heigth": 1}},
            {"square": {"height": 3}},
        ):
            try:
                config(**sections)
            except ConfigError as error:
                print(error)
        print("torch" in sys.modules)
        from dynamic_dpo.methods import Square, SquareConfig
        print(Square.__module__, SquareConfig().height)
    """
    assert run(package, "-c", code).splitlines() == [
        "{'beta': None, 'height': 3.0}",
        "square",
        "square.height must be greater than 0, got 0",
        "unknown key square.heigth; did you mean square.height?",
        "square.height has no effect with method.name risk and method.loss dpo: remove it, or choose square, got 3.0",
        "False",
        "dynamic_dpo.methods.square 1.0",
    ]


def test_help_and_documentation_describe_it(package: Path) -> None:
    text = run(package, "-m", "dynamic_dpo.cli.train_dpo", "--help-all")
    assert "square: Read where method.name or method.loss is square." in text
    assert "  square.height = 1.0  (number > 0)\n      Loss of a pair with margin 0." in text
    page = run(package, "-X", "utf8", "-m", "dynamic_dpo.config.key_reference")
    assert "| `square.height` | number > 0 | `1.0` | Loss of a pair with margin 0. |" in page
    assert "| `square.beta` | number > 0 or null | `null` | Beta; null: beta_update.beta_0. |" in page
    assert "alpha_dpo, square | `risk` |" in page


def test_the_conformance_suite_and_the_tests_of_building_hold_it_to_the_rest(package: Path) -> None:
    where = run(package, "-c", "import dynamic_dpo; print(dynamic_dpo.__file__)")
    assert Path(where.strip()).is_relative_to(package)
    suites = [
        "tests/methods/test_conformance.py",
        "tests/methods/test_building.py",
        "tests/config/sections/test_method_sections.py",
    ]
    report = run(package, *PYTEST, "-k", "square or table or every", *suites)
    passed = int(report.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > 40
    assert run(package, *PYTEST, "--collect-only", "-k", "square", *suites).count("[square") > 40


# ---- the table ----


def test_checking_a_file_loads_no_torch() -> None:
    code = "import dynamic_dpo.config.schema, sys; print('torch' in sys.modules)"
    assert run(SOURCE, "-c", code).strip() == "False"


def test_a_method_is_imported_when_it_is_first_asked_for() -> None:
    code = """if True:
        import sys
        from dynamic_dpo.methods import METHODS
        print(sorted(METHODS)[:2], "ipo" in METHODS, len(METHODS) > 10, "dynamic_dpo.methods.ipo" in sys.modules)
        print(METHODS["ipo"].__name__, "dynamic_dpo.methods.ipo" in sys.modules)
        from dynamic_dpo.methods.risk import Risk, RiskConfig
        print("torch" in sys.modules)
    """
    assert run(SOURCE, "-c", code).splitlines() == [
        "['alpha_dpo', 'alpha_po'] True True False",
        "IPO True",
        "False",
    ]


def test_a_table_takes_classes_gives_them_back_and_lets_go_of_them() -> None:
    table = MethodTable({"dpo": "dynamic_dpo.methods.dpo:DPO"})
    table["mine"] = METHODS["ipo"]
    assert {name: method.name for name, method in table.items()} == {"dpo": "dpo", "mine": "ipo"}
    del table["mine"]
    assert list(table) == ["dpo"]
    assert "mine" not in table
    with pytest.raises(KeyError):
        table["mine"]


def test_every_class_and_config_of_a_method_can_be_imported_from_the_package() -> None:
    import dynamic_dpo.methods as package

    for method in METHODS.values():
        assert getattr(package, method.__name__) is method
        assert method.Settings is None or getattr(package, method.Settings.__name__) is method.Settings
        assert {method.__name__, "ScheduleConfig", "RiskConfig"} <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        package.Nonsense  # noqa: B018
