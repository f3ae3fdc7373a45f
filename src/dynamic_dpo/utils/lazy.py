"""Names of a package that are imported when they are first used, so that importing the package stays instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's ``__name__``.
        homes: Name to the submodule that defines it, relative to the package.

    Returns:
        Functions to bind as ``__getattr__`` and ``__dir__``; an unknown name is an `AttributeError`.

    Example:
        >>> getter, lister = lazy_names("json", {"JSONDecoder": "decoder"})
        >>> getter("JSONDecoder").__name__, "JSONDecoder" in lister()
        ('JSONDecoder', True)
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
