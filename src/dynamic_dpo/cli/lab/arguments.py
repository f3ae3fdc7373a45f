"""What the commands of the lab share: lists, settings, and the files a result goes to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dynamic_dpo.errors import ConfigError

T = TypeVar("T")


def add_result_files(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, ``--json`` and ``--plot``."""
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the risk controller, e.g. delta=0.05 alpha=0.01",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="draw beta over the updates")


def comma_list(text: str, kind: Callable[[str], T] = str) -> list[T]:  # type: ignore[assignment]
    """Return the parts of a comma list.

    Raises:
        ConfigError: If it is empty or a part is not of its kind.

    Example:
        >>> comma_list("4,16", int)
        [4, 16]
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"expected a comma list, got {text!r}")
    try:
        return [kind(part) for part in parts]
    except ValueError:
        raise ConfigError(f"expected a comma list of whole numbers, got {text!r}") from None


def write_result(arguments: argparse.Namespace, result: dict[str, Any], draw: Callable[[str], Path]) -> None:
    """Write the files that ``--json`` and ``--plot`` ask for, and say so."""
    from dynamic_dpo.utils.files import write_json

    if arguments.json:
        print(f"written: {write_json(arguments.json, result)}")
    if arguments.plot:
        print(f"drawn: {draw(arguments.plot)}")
