"""All shapes by name. A new one is a module with two functions, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from dynamic_dpo.data.shapes import other_names, rankings, two_responses
from dynamic_dpo.data.shapes.options import ShapeOptions, renamed


class Shape(NamedTuple):
    """A shape of rows.

    Attributes:
        recognises: Whether a row has it; asked in the order of `SHAPES`.
        rewrite: From such a row to one that `dynamic_dpo.data.pairing` reads; raises ``BadRow``.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    rewrite: Callable[[Mapping[str, Any], ShapeOptions], dict[str, Any]]


SHAPES: Final[dict[str, Shape]] = {
    "helpsteer": Shape(two_responses.is_strength, two_responses.by_strength),
    "arena": Shape(two_responses.is_arena, two_responses.by_winner),
    "ranking": Shape(rankings.is_ranking, rankings.by_rank),
    "sharegpt": Shape(other_names.is_sharegpt, other_names.from_conversations),
    "named_prompt": Shape(other_names.has_prompt_elsewhere, other_names.with_prompt),
}
"""Name to shape. A row may have several, one after the other: a ranking's prompt may have another name."""


def rewritten(row: Mapping[str, Any], options: ShapeOptions) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return a row as one that is read, and the names of the shapes that it had.

    Raises:
        BadRow: If it has a shape, and cannot be read as such.
    """
    row = renamed(row, options.columns)
    names = []
    for name, shape in SHAPES.items():
        if shape.recognises(row):
            row = shape.rewrite(row, options)
            names.append(name)
    return row, tuple(names)


def is_unpaired(row: object) -> bool:
    """Return whether a row is one answer with a label that says whether it is good."""
    return isinstance(row, Mapping) and "label" in row and "completion" in row and "chosen" not in row
