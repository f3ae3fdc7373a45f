"""How a component states its settings: a frozen dataclass whose fields carry meaning, range and place in a file.

Nothing is stated a second time: the same fields check the object, make the sections of a configuration file
(`dynamic_dpo.config.from_settings`), and from there ``--help-all`` and the documentation. Loads no torch, since files
are checked and documented without it.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.bounds import Bounds, bounds_from

ConfigT = TypeVar("ConfigT")


class Relation(NamedTuple):
    """What a setting must be to another one: ``at least``, ``at most`` or ``above`` it."""

    words: str
    other: str

    def holds(self, value: float, other: float) -> bool:
        """Return whether ``value`` is to ``other`` what it must be."""
        if self.words == "above":
            return value > other
        return value >= other if self.words == "at least" else value <= other


@dataclass(frozen=True)
class Stated:
    """What stands beside a setting's type and default.

    Attributes:
        description: What it means.
        bounds: Range of its number, where it has one.
        key: ``section.key`` by which a file names it; empty: its own name, in the component's section.
        has_file_default: Whether its default in files is another than in Python, `file_default`.
        file_default: That default.
        null_in_files: Whether a file may leave it open, for another setting to fill in.
        relations: What it must be to other settings of the component.
        needed_by: Name and value of another setting with which this one cannot be ``None``.
        not_empty: Whether it is a text that cannot be empty.
    """

    description: str
    bounds: Bounds | None = None
    key: str = ""
    has_file_default: bool = False
    file_default: Any = None
    null_in_files: bool = False
    relations: tuple[Relation, ...] = ()
    needed_by: tuple[str, Any] | None = None
    not_empty: bool = False


class FileKey(NamedTuple):
    """Where a file says a setting: section and key, and the attribute that holds it in a checked configuration."""

    section: str
    key: str
    attribute: str

    @property
    def path(self) -> str:
        """The key with its section, as errors and the documentation name it."""
        return f"{self.section}.{self.key}"


_SAME: Any = object()


def setting(
    default: Any,
    description: str,
    *,
    key: str = "",
    in_files: Any = _SAME,
    at_least: str = "",
    at_most: str = "",
    above: str = "",
    needed_by: tuple[str, Any] | None = None,
    not_empty: bool = False,
    **limits: float,
) -> Any:
    """Return a dataclass field that states a setting.

    Args:
        default: Its value where nothing else is said.
        description: What it means, a sentence or two with a full stop.
        key: ``section.key`` in a file; by default its own name in the section that bears the method's name.
        in_files: The default in files, where that is another.
        at_least: Name of a setting of the component that it must reach.
        at_most: Name of a setting that it must not exceed.
        above: Name of a setting that it must exceed.
        needed_by: Name and value of a setting with which this one cannot be ``None``.
        not_empty: Whether it is a text that cannot be empty.
        **limits: The range of its number: ``gt``, ``ge``, ``lt``, ``le``.

    Example:
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     gain: float = setting(0.5, "How much.", ge=0)
        ...
        ...     def __post_init__(self) -> None:
        ...         check_settings(self)
        >>> Config(gain=-1.0)
        Traceback (most recent call last):
        dynamic_dpo.errors.ConfigError: gain must be at least 0, got -1.0
    """
    related = (("at least", at_least), ("at most", at_most), ("above", above))
    stated = Stated(
        description,
        bounds_from(**limits),
        key=key,
        has_file_default=in_files is not _SAME,
        file_default=in_files,
        relations=tuple(Relation(words, other) for words, other in related if other),
        needed_by=needed_by,
        not_empty=not_empty,
    )
    return field(default=default, metadata={"stated": stated})


def same_as(config: type[Any], name: str, **limits: float) -> Any:
    """Return a field that states what the field ``name`` of another component does, with ``limits`` of its own."""
    (entry,) = (entry for entry in fields(config) if entry.name == name)
    stated = stated_by(entry)
    if limits:
        stated = replace(stated, bounds=bounds_from(**limits))
    return field(default=entry.default, metadata={"stated": stated})


def stated_by(entry: Field[Any]) -> Stated:
    """Return what is stated with a field.

    Raises:
        TypeError: If nothing is.
    """
    stated = entry.metadata.get("stated")
    if not isinstance(stated, Stated):
        raise TypeError(
            f"the setting {entry.name} has no meaning: make its field with `setting(default, description)`"
        )
    return stated


def kinds_of(config: type[Any]) -> dict[str, Any]:
    """Return the type of each setting of a component."""
    return {
        name: kind for name, kind in get_type_hints(config).items() if name in config.__dataclass_fields__
    }


def file_keys(config: type[Any], section: str = "") -> dict[str, FileKey]:
    """Return where a file says each setting of a component, by the setting's name.

    Args:
        config: The component's dataclass.
        section: Section of the settings that name no key themselves; empty: these stand in no file.
    """
    keys = {}
    for entry in fields(config):
        named, _, key = stated_by(entry).key.rpartition(".")
        place, key = (named, key) if key else (section, entry.name)
        if place:
            # `lambda` cannot be an attribute's name.
            keys[entry.name] = FileKey(place, key, entry.name if keyword.iskeyword(key) else key)
    return keys


def file_defaults(config: type[ConfigT]) -> ConfigT:
    """Return the settings of a component as a file that says nothing gives them; what it leaves open is Python's.

    Example:
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     gain: float = setting(0.5, "How much.", in_files=1.0)
        >>> Config().gain, file_defaults(Config).gain
        (0.5, 1.0)
    """
    changed: dict[str, Any] = {}
    for entry in fields(config):  # type: ignore[arg-type]
        stated = stated_by(entry)
        if stated.has_file_default and not (stated.null_in_files and stated.file_default is None):
            changed[entry.name] = stated.file_default
    return config(**changed)


def check_settings(config: Any) -> None:
    """Raise `ConfigError` where a setting is none of its choices, out of its range, or at odds with another.

    Called in a component's ``__post_init__``; see `setting` for an example.
    """
    kinds = kinds_of(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if fault := _fault(value, kinds[entry.name], stated_by(entry)):
            raise ConfigError(f"{entry.name} {fault}, got {value!r}")
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    for line in (*unmet_relations(type(config), values), *unmet_needs(type(config), values)):
        raise ConfigError(line)


def unmet_relations(
    config: type[Any], values: Mapping[str, Any], name_of: Callable[[str], str] = str
) -> Iterator[str]:
    """Yield a line for each setting that is not to another what it must be.

    Args:
        config: The component's dataclass.
        values: Every setting by its name, right in itself.
        name_of: What a setting is called where it was given.
    """
    for entry in fields(config):
        value = values[entry.name]
        for relation in stated_by(entry).relations:
            other = values[relation.other]
            if value is not None and not relation.holds(value, other):
                wanted = f"{relation.words} {name_of(relation.other)} ({other:g})"
                yield f"{name_of(entry.name)} must be {wanted}, got {value!r}"


def unmet_needs(
    config: type[Any], values: Mapping[str, Any], name_of: Callable[[str], str] = str
) -> Iterator[str]:
    """Yield a line for each setting that another one needs and that is not given; see `unmet_relations`."""
    for entry in fields(config):
        stated = stated_by(entry)
        if values[entry.name] is not None or stated.needed_by is None:
            continue
        needing, value = stated.needed_by
        if values[needing] == value:
            yield f"{name_of(entry.name)} is needed by {name_of(needing)} {value}: {stated.description}"


def options_of(kind: Any) -> tuple[Any, ...]:
    """Return the types that a union allows, or the one type.

    >>> options_of(int | None), options_of(float)
    ((<class 'int'>, <class 'NoneType'>), (<class 'float'>,))
    """
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fault(value: Any, kind: Any, stated: Stated) -> str | None:
    """Return what is wrong with a value by itself, ``None`` where nothing is."""
    options = options_of(kind)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    is_number = int in options or float in options
    if value in choices or (value is None and NoneType in options):
        return None
    or_choice = f", or {', '.join(map(repr, choices))}" if choices and is_number else ""
    if not is_number:
        if choices:
            return f"must be one of {', '.join(map(repr, choices))}"
        return "must not be empty" if stated.not_empty and value == "" else None
    if not (isinstance(value, Real) and math.isfinite(value)):
        return f"must be a finite number{or_choice}"
    if stated.bounds is not None and not stated.bounds.holds(float(value)):
        return f"{stated.bounds.requirement()}{or_choice}"
    return None


def documented(*stating: type[Any]) -> Callable[[type[ConfigT]], type[ConfigT]]:
    """Return a class decorator that adds what is stated with each setting to the docstring.

    Args:
        *stating: The dataclasses that state them; by default the decorated one.
    """

    def add(config: type[ConfigT]) -> type[ConfigT]:
        lines = [
            f"        {entry.name}: {stated_by(entry).description}"
            for kind in stating or (config,)
            for entry in fields(kind)  # type: ignore[arg-type]
        ]
        config.__doc__ = f"{(config.__doc__ or '').rstrip()}\n\n    Attributes:\n" + "\n".join(lines)
        return config

    return add
