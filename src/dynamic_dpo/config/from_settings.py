"""Sections of a file made from what components state of their settings, and components made from sections.

Types, defaults, ranges and meanings stand with the component (`dynamic_dpo.utils.settings`) and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, get_origin

import annotated_types
from pydantic import Field, ValidationInfo, create_model, field_validator

from dynamic_dpo.config.base import Section, refuse
from dynamic_dpo.utils.bounds import Bounds
from dynamic_dpo.utils.settings import (
    FileKey,
    Relation,
    Stated,
    file_keys,
    kinds_of,
    options_of,
    stated_by,
    unmet_needs,
    unmet_relations,
)


def settings_section(
    section: str, config: type[Any], *, own: bool = False, base: type[Section] = Section
) -> type[Any]:
    """Return a section with every setting of a component that stands in it.

    Args:
        section: The section's name.
        config: The component's dataclass.
        own: Whether settings that name no key stand in this section too.
        base: Section with the keys that stand before them.

    Returns:
        The section, typed as `Any` since its keys are known at run time only; to be subclassed with a docstring.
    """
    keys = file_keys(config, section if own else "")
    kinds = kinds_of(config)
    columns: dict[str, Any] = {}
    validators: dict[str, Any] = {}
    for entry in fields(config):
        key, stated = keys.get(entry.name), stated_by(entry)
        if key is None or key.section != section:
            continue
        default = stated.file_default if stated.has_file_default else entry.default
        columns[key.attribute] = _column(key, kinds[entry.name], default, stated)
        for relation in stated.relations:
            other = keys[relation.other]
            # What a setting must be to one of another section, `contradictions_in` sees.
            if other.section == section:
                check = field_validator(key.attribute)(_related(relation, other))
                validators[f"_{key.attribute}_{len(validators)}"] = check
    return create_model(f"{section}_keys", __base__=base, __validators__=validators, **columns)


def _column(key: FileKey, kind: Any, default: Any, stated: Stated) -> tuple[Any, Any]:
    """Return type and field of a key, as pydantic takes them."""
    limits = _limits(stated.bounds)
    if limits and any(get_origin(option) is Literal for option in options_of(kind)):
        # The range is the number's, not the word's beside it.
        number, *words = options_of(kind)
        constraints = [getattr(annotated_types, limit.capitalize())(value) for limit, value in limits.items()]
        kind, limits = Annotated[number, *constraints], {}
        for word in words:
            kind = kind | word
    if stated.null_in_files:
        kind = kind | None
    alias = {} if key.key == key.attribute else {"alias": key.key}
    length = {"min_length": 1} if stated.not_empty else {}
    return kind, Field(default=default, description=stated.description, **limits, **alias, **length)  # type: ignore[call-overload]


def _limits(bounds: Bounds | None) -> dict[str, float]:
    if bounds is None:
        return {}
    limits = {
        "ge" if bounds.low_closed else "gt": bounds.low,
        "le" if bounds.high_closed else "lt": bounds.high,
    }
    return {limit: value for limit, value in limits.items() if value is not None}


def _related(relation: Relation, other: FileKey) -> Callable[..., Any]:
    def check(cls: type[Section], value: Any, info: ValidationInfo) -> Any:
        # A setting that is wrong in itself is not there.
        against = info.data.get(other.attribute)
        if value is not None and against is not None and not relation.holds(value, against):
            refuse(f"must be {relation.words} {other.path} ({against:g})")
        return value

    return check


def settings_in(document: Any, config: type[Any], section: str = "") -> dict[str, Any]:
    """Return what a checked file says of a component's settings, by the settings' names.

    Args:
        document: The configuration.
        config: The component's dataclass.
        section: Section of the settings that name no key; empty: these are left out.
    """
    keys = file_keys(config, section)
    return {name: getattr(getattr(document, key.section), key.attribute) for name, key in keys.items()}


def contradictions_in(
    document: Any, config: type[Any], section: str = "", *, is_chosen: bool = True
) -> Iterator[str]:
    """Yield a line for each setting of a component that another one rules out.

    Args:
        document: The configuration.
        config: The component's dataclass.
        section: Section of the settings that name no key.
        is_chosen: Whether the component is in use, so that it must have what it needs.
    """
    values, keys = settings_in(document, config, section), file_keys(config, section)
    yield from unmet_relations(config, values, lambda name: keys[name].path)
    if is_chosen:
        yield from unmet_needs(config, values, lambda name: keys[name].path)
