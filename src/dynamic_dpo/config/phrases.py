"""Types, bounds and values of settings in words, the same in errors, ``--help-all`` and the documentation."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from dynamic_dpo.utils.bounds import Bounds, bounds_from

_LIMITS: dict[str, Any] = {
    "gt": annotated_types.Gt,
    "ge": annotated_types.Ge,
    "lt": annotated_types.Lt,
    "le": annotated_types.Le,
}
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "mapping"}


def bounds_of(field: FieldInfo) -> Bounds | None:
    """Return the range of a field's number, or ``None`` where it has none.

    >>> from typing import Annotated
    >>> bounds_of(FieldInfo(annotation=Annotated[float, annotated_types.Gt(0)] | Literal["auto"])).label()
    '> 0'
    """
    limits: dict[str, Any] = {}
    # Where a union's number alone has a range, it is annotated by itself.
    of_options = [argument for option in get_args(field.annotation) for argument in get_args(option)[1:]]
    for constraint in (*field.metadata, *of_options):
        for limit, kind in _LIMITS.items():
            if isinstance(constraint, kind):
                limits[limit] = getattr(constraint, limit)
    return bounds_from(**limits)


def kind_of(annotation: Any) -> str:
    """Return what values of a type are, in words.

    >>> kind_of(int | None), kind_of(float | Literal["match"]), kind_of(Literal["a", "b"])
    ('whole number or null', 'number or match', 'one of a, b')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(kind_of(option) for option in arguments)
    if origin is Annotated:
        return kind_of(arguments[0])
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
