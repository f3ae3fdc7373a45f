"""The settings in which the trainings of a sweep differ: every combination of their values, or those of a list."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.hashing import content_hash

_LONGEST_NAME: Final = 80
_OPENING, _CLOSING, _QUOTES = "[{", "]}", "'\""


class Axis(NamedTuple):
    """A setting and the values that it takes, as they are written in ``key=value``."""

    key: str
    values: tuple[str, ...]


class Point(NamedTuple):
    """One training of a sweep.

    Attributes:
        name: Of its folder: what is set, in short. It hangs on the settings alone, so that a grid can grow.
        overrides: ``key=value`` of what differs.
    """

    name: str
    overrides: tuple[str, ...]


def split_axes(words: Iterable[str]) -> tuple[list[Axis], list[str]]:
    """Tell settings with several values from settings with one.

    Args:
        words: ``key=value`` or ``key=value,value``; a comma within brackets or quotes is part of a value.

    Returns:
        The axes, and the words with one value.

    Raises:
        ConfigError: If a value is empty, given twice, or a key comes twice.

    Example:
        >>> split_axes(["method.loss=dpo,ipo", "dataset.subset='train,test'", "peft.r=8"])
        ([Axis(key='method.loss', values=('dpo', 'ipo'))], ["dataset.subset='train,test'", 'peft.r=8'])
    """
    axes, fixed = [], []
    for word in words:
        key, equals, text = word.partition("=")
        values = _split(text)
        if not equals or len(values) == 1:
            fixed.append(word)
            continue
        if not all(values):
            raise ConfigError(f"{word!r} has an empty value: write one between every two commas")
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ConfigError(f"{word!r} gives {twice[0]} twice: each value is one training")
        axes.append(Axis(key.strip(), tuple(values)))
    doubled = [key for key, count in Counter(axis.key for axis in axes).items() if count > 1]
    doubled += [
        axis.key for axis in axes if any(word.partition("=")[0].strip() == axis.key for word in fixed)
    ]
    if doubled:
        raise ConfigError(f"{doubled[0]} is given twice: write all of its values behind one key")
    return axes, fixed


def points_of(axes: Sequence[Axis], listed: Sequence[Mapping[str, str]] = ()) -> list[Point]:
    """Return the trainings: every combination of the axes' values, each beside every entry of the list.

    Args:
        axes: The settings with several values.
        listed: Settings that go together, key to value as written.

    Raises:
        ConfigError: If there is nothing that differs, or two trainings are the same.

    Example:
        >>> [point.name for point in points_of([Axis("beta_update.beta_0", (".1", ".3"))])]
        ['beta_0=.1', 'beta_0=.3']
    """
    grid = [
        dict(zip((axis.key for axis in axes), values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    settings = [{**one, **other} for one in (listed or [{}]) for other in grid]
    if len(settings) < 2 and not listed:
        raise ConfigError(
            "a sweep needs a setting with several values, such as beta_update.beta_0=.03,.1,.3, or a --list of them"
        )
    for entry in listed:
        both = [axis.key for axis in axes if axis.key in entry]
        if both:
            raise ConfigError(f"{both[0]} stands in the list and in the grid: give it in one of them")
    short = _short_keys({key for one in settings for key in one})
    points = [
        Point(_name(one, short), tuple(f"{key}={value}" for key, value in one.items())) for one in settings
    ]
    same = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if same:
        raise ConfigError(f"{same[0]} is in the sweep twice: each training needs settings of its own")
    return points


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _short_keys(keys: Iterable[str]) -> dict[str, str]:
    keys = sorted(keys)
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    count = Counter(last.values())
    return {key: name if count[name] == 1 else key for key, name in last.items()}


def _name(settings: Mapping[str, str], short: Mapping[str, str]) -> str:
    words = [f"{short[key]}={value}" for key, value in settings.items()]
    plain = ",".join(words)
    name = re.sub(r"[^A-Za-z0-9._=+,-]+", "_", plain)
    if name == plain and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{content_hash(dict(settings))[:8]}"
