"""Preference methods by name: one file a method, one line in `METHODS` (`dynamic_dpo.methods.table`).

Every method's class and its dataclasses of settings can be imported from here: ``from dynamic_dpo.methods import IPO,
IPOConfig``. They are found through the table when they are first used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from dynamic_dpo.methods.base import (
    BuildContext,
    Control,
    LogitChunk,
    Needs,
    PairForward,
    PreferenceMethod,
    TokenStatistic,
)
from dynamic_dpo.methods.table import METHODS

__all__ = [
    "METHODS",
    "BuildContext",
    "Control",
    "LogitChunk",
    "Needs",
    "PairForward",
    "PreferenceMethod",
    "TokenStatistic",
]


def _of_methods() -> Iterator[tuple[str, Any]]:
    """Yield name and value of each method's class and of what its module holds of settings."""
    for method in METHODS.values():
        yield method.__name__, method
        for name, value in vars(sys.modules[method.__module__]).items():
            if isinstance(value, type) and is_dataclass(value) and value.__name__ == name:
                yield name, value


def __getattr__(name: str) -> Any:
    # Names of modules are not looked for: `from dynamic_dpo.methods import risk` asks here first.
    if name[:1].isupper():
        for found, value in _of_methods():
            if found == name:
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for name, _ in _of_methods())})
