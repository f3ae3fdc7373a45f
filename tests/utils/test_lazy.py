"""Names that a package imports when they are first used."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def pantry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    (tmp_path / "pantry").mkdir()
    (tmp_path / "pantry" / "__init__.py").write_text(
        "from dynamic_dpo.utils.lazy import lazy_names\n"
        "OPEN = True\n"
        "__getattr__, __dir__ = lazy_names(__name__, {'flour': 'shelf', 'salt': 'empty', 'rice': 'shelf'})\n"
    )
    (tmp_path / "pantry" / "shelf.py").write_text("flour = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import pantry

    yield pantry
    for name in [name for name in sys.modules if name.partition(".")[0] == "pantry"]:
        del sys.modules[name]


def test_a_submodule_is_imported_at_the_first_use_of_its_name_and_not_before(
    pantry: types.ModuleType,
) -> None:
    assert "pantry.shelf" not in sys.modules
    flour = pantry.flour
    assert "pantry.shelf" in sys.modules
    assert pantry.flour is flour


def test_a_name_that_was_used_is_the_packages_own_from_then_on(pantry: types.ModuleType) -> None:
    assert "flour" not in vars(pantry)
    flour = pantry.flour
    assert vars(pantry)["flour"] is flour


def test_names_not_used_yet_are_listed_beside_those_that_are_there(pantry: types.ModuleType) -> None:
    assert {"OPEN", "flour", "rice", "salt"} <= set(dir(pantry))
    assert "pantry.shelf" not in sys.modules


def test_an_unknown_name_is_an_attribute_error_of_the_package(pantry: types.ModuleType) -> None:
    with pytest.raises(AttributeError, match="module 'pantry' has no attribute 'sugar'"):
        pantry.sugar  # noqa: B018


def test_a_home_that_is_missing_or_lacks_the_name_is_not_hidden(pantry: types.ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pantry\.empty"):
        pantry.salt  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'rice'"):
        pantry.rice  # noqa: B018
