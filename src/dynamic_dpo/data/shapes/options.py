"""What a user says of the shape of a set, where it is not found by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.errors import ConfigError

RankingRule = Literal["best_worst", "best_second", "best_random"]
NAMEABLE: Final = ("prompt", "chosen", "rejected", "system")
"""What a column can be named to hold."""


class ShapeOptions(NamedTuple):
    """What is said of a set's shape.

    Attributes:
        columns: One of `NAMEABLE` to the name of the column that holds it.
        ranking: Which two of several ranked answers become the pair: the best and the worst, the best and the second,
            or the best and one drawn by a hash of the row.
    """

    columns: Mapping[str, str] = {}
    ranking: RankingRule = "best_worst"

    def check(self) -> ShapeOptions:
        """Return the options.

        Raises:
            ConfigError: If something else is named than there is.
        """
        unknown = [name for name in self.columns if name not in NAMEABLE]
        if unknown:
            raise ConfigError(
                f"dataset.columns names {', '.join(unknown)}: expected some of {', '.join(NAMEABLE)}, each with the "
                "name of the column that holds it"
            )
        return self


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a row with its columns under the names that they are read by.

    Raises:
        BadRow: ``missing_field`` where a column that was named is not there.

    Example:
        >>> renamed({"q": "2+2?", "good": "4", "bad": "5"}, {"prompt": "q", "chosen": "good", "rejected": "bad"})
        {'prompt': '2+2?', 'chosen': '4', 'rejected': '5'}
    """
    if not columns:
        return row
    for name, column in columns.items():
        if column not in row:
            raise BadRow("missing_field", f"{column}, named for {name}, is missing in {dict(row)!r}")
    taken = {*columns.values(), *columns}
    rest = {name: value for name, value in row.items() if name not in taken}
    return {**rest, **{name: row[column] for name, column in columns.items()}}
