"""Types, bounds and values of settings in words, the same in errors, ``--help`` and the documentation.

Reads pydantic's field descriptions; knows no setting.
"""

from __future__ import annotations

import json
import types
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "mapping"}


class Bounds(NamedTuple):
    """The range of a number: ``low`` and ``high`` may be absent, and belong to the range if closed."""

    low: float | None
    low_closed: bool
    high: float | None
    high_closed: bool

    def requirement(self) -> str:
        """Say what a value must do.

        >>> Bounds(0, False, 1, False).requirement(), Bounds(1, True, None, False).requirement()
        ('must lie in (0, 1)', 'must be at least 1')
        """
        if self.low is not None and self.high is not None:
            return f"must lie in {self._interval()}"
        if self.low is not None:
            return f"must be {'at least' if self.low_closed else 'greater than'} {self.low:g}"
        return f"must be {'at most' if self.high_closed else 'less than'} {self.high:g}"

    def label(self) -> str:
        """Return the range in symbols.

        >>> Bounds(0, True, 1, False).label(), Bounds(0, False, None, False).label()
        ('in [0, 1)', '> 0')
        """
        if self.low is not None and self.high is not None:
            return f"in {self._interval()}"
        if self.low is not None:
            return f"{'≥' if self.low_closed else '>'} {self.low:g}"
        return f"{'≤' if self.high_closed else '<'} {self.high:g}"

    def _interval(self) -> str:
        return (
            f"{'[' if self.low_closed else '('}{self.low:g}, {self.high:g}{']' if self.high_closed else ')'}"
        )


def bounds_of(field: FieldInfo) -> Bounds | None:
    """Return the range of a field's number, or ``None`` where it has none."""
    low: Any = None
    high: Any = None
    low_closed = high_closed = False
    for constraint in field.metadata:
        if isinstance(constraint, annotated_types.Gt):
            low, low_closed = constraint.gt, False
        elif isinstance(constraint, annotated_types.Ge):
            low, low_closed = constraint.ge, True
        elif isinstance(constraint, annotated_types.Lt):
            high, high_closed = constraint.lt, False
        elif isinstance(constraint, annotated_types.Le):
            high, high_closed = constraint.le, True
    return None if low is None and high is None else Bounds(low, low_closed, high, high_closed)


def kind_of(annotation: Any) -> str:
    """Return what values of a type are, in words.

    >>> kind_of(int | None), kind_of(float | Literal["match"]), kind_of(Literal["a", "b"])
    ('whole number or null', 'number or match', 'one of a, b')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(kind_of(option) for option in arguments)
    if origin is Literal:
        options = ", ".join(shown(option) for option in arguments)
        return options if len(arguments) == 1 else f"one of {options}"
    if origin is list:
        return f"list of {kind_of(arguments[0]).removeprefix('one of ')}"
    if annotation in (None, types.NoneType):
        return "null"
    kind = origin or annotation
    return _WORDS[kind] if kind in _WORDS else str(getattr(kind, "__name__", kind))


def kind_with_bounds(field: FieldInfo) -> str:
    """Return a field's type with the range of its number, e.g. ``whole number ≥ 1 or null``."""
    kind, bounds = kind_of(field.annotation), bounds_of(field)
    if bounds is None:
        return kind
    first, joint, rest = kind.partition(" or ")
    return f"{first} {bounds.label()}{joint}{rest}"


def requirement(annotation: Any) -> str:
    """Say which type a value must have, for an error.

    >>> requirement(float), requirement(str | None), requirement(Literal["a", "b"])
    ('must be a number', 'must be text or null', 'must be one of a, b')
    """
    is_union = get_origin(annotation) in (Union, types.UnionType)
    kinds = [kind_of(option) for option in (get_args(annotation) if is_union else (annotation,))]
    counted = ("whole number", "number", "list", "mapping")
    return f"must be {' or '.join(f'a {kind}' if kind.startswith(counted) else kind for kind in kinds)}"


def shown(value: Any) -> str:
    """Return a value as a configuration file would write it, on one line.

    >>> shown(None), shown(True), shown(5e-7), shown("all-linear"), shown([1])
    ('null', 'true', '5e-7', 'all-linear', '[1]')
    """
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-").replace("e+0", "e")
    return json.dumps(value, ensure_ascii=False)


def given(value: Any) -> str:
    """Return a value that was given, for an error: shortened, with its type unless it is a number or null.

    >>> given(1.2), given("three"), given(None), given(True)
    ('1.2', "'three' (str)", 'null', 'true (bool)')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{shown(value)} (bool)"
    if isinstance(value, int | float):
        return repr(value)
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:76]} …"
    return f"{text} ({type(value).__name__})"
