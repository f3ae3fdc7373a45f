"""Read YAML files and ``key=value`` overrides into plain dictionaries, and write them back.

How settings are written. Which settings there are, and whether a value is right, is the schema's to say.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.secrets import redact

_FLOAT_TAG = "tag:yaml.org,2002:float"
_INT_TAG = "tag:yaml.org,2002:int"
_REDEFINED_TAGS = {_FLOAT_TAG, _INT_TAG, "tag:yaml.org,2002:timestamp"}

# YAML 1.1 reads 5e-7 as text (it wants a dot and a signed exponent), 12:30 as the number 750 and
# 2024-01-31 as a date. Settings mean a number, a text and a text.
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+
       |[-+]?[0-9][0-9_]*\.[0-9_]*
       |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
       |[-+]?\.(?:inf|Inf|INF)
       |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_INT = re.compile(r"^[-+]?(?:0b[0-1_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")


_MOST_VALUES = 100_000
_DEEPEST = 100


class _Loader(yaml.SafeLoader):
    """The safe loader, with plain numbers and an error where a key appears twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it, not as a ClassVar
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REDEFINED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise _YAMLProblem(line, f"broken YAML: values nested deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return self.construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_line: dict[Hashable, int] = {}
        # The node's own keys, before merge keys (<<) are spread: overriding a merged key is their purpose.
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _YAMLProblem(line, f"key {key!r} is not text; write it in quotes")
            if key in first_line:
                raise _YAMLProblem(line, f"duplicate key {key!r}, first given on line {first_line[key]}")
            first_line[key] = line
        return super().construct_mapping(node, deep=deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = int(yaml.SafeLoader.construct_yaml_int(loader, node))
    if abs(number) >= 2**63:
        raise _YAMLProblem(node.start_mark.line + 1, "a whole number beyond 64 bits; if it is text, quote it")
    return number


_Loader.add_constructor(_INT_TAG, _whole_number)


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` would otherwise read as a number."""

    yaml_implicit_resolvers = dict(_Loader.yaml_implicit_resolvers)  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
    _kind.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))


class _YAMLProblem(Exception):
    """A problem with its line, before the place it was read from is known."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; `_YAMLProblem` if that is beyond all reason.

    Ten lines of ten aliases each are ten thousand million values to whoever walks through them.
    """
    key = id(node)
    if key in sizes:
        if not sizes[key]:
            raise _YAMLProblem(node.start_mark.line + 1, "this value contains itself")
        return sizes[key]
    sizes[key] = 0
    size = 1
    if isinstance(node, yaml.CollectionNode):
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        for part in parts:
            size += _expanded_size(part, sizes)
            if size > _MOST_VALUES:
                what = f"more than {_MOST_VALUES} values, aliases written out; no configuration has so many"
                raise _YAMLProblem(node.start_mark.line + 1, what)
    sizes[key] = size
    return size


def _parse(text: str, place: str) -> Any:
    """Parse one YAML document; ``place`` is what an error names, a line number is added to it."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _YAMLProblem as problem:
        raise ConfigError(f"{place}, line {problem.line}: {problem}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable as YAML"
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{place}{line}: broken YAML: {what}") from error
    except (ValueError, RecursionError) as error:
        # e.g. `0x` followed by underscores alone, or thousands of nested brackets
        raise ConfigError(f"{place}: broken YAML: {error}") from error


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds one mapping of text keys.

    Args:
        path: The file, in UTF-8.

    Returns:
        The mapping as plain dictionaries, lists, texts, numbers, booleans and ``None``. ``5e-7`` and ``1e3``
        are floats; dates and times of day stay text.

    Raises:
        ConfigError: If the file is missing, unreadable, empty, broken or not a mapping, or if a key appears
            twice in one mapping. The message names the file and the line.
    """
    place = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such configuration file; check the path given to --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not a text file in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read as a configuration file ({error.strerror})") from error
    config = _parse(text, place)
    if config is None:
        raise ConfigError(f"{place}: the file is empty; expected keys and values such as `policy_name: …`")
    if not isinstance(config, dict):
        raise ConfigError(
            f"{place}: expected keys and values such as `policy_name: …`, got a {type(config).__name__}"
        )
    return config


def dump_yaml(config: Mapping[str, Any]) -> str:
    """Write a mapping as YAML that ``load_yaml`` reads back unchanged.

    >>> print(dump_yaml({"learning_rate": 5e-07, "run_name": "1e3"}), end="")
    learning_rate: 5.0e-07
    run_name: '1e3'
    """
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=110)


def apply_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a configuration in which ``a.b=value`` settings replace or add keys.

    A value is read as YAML, exactly as in a file; an empty one is null. The last of several settings of a
    key wins. A section that is absent or null is created.

    Args:
        config: The configuration to start from; it is not changed.
        overrides: Settings such as ``"risk_test.delta=0.05"``.

    Returns:
        A new dictionary that shares nothing with ``config``.

    Raises:
        ConfigError: If a setting has no ``=``, an empty part in its key or an unreadable value, or if it
            goes below a key that holds a plain value.

    Example:
        >>> apply_overrides({"risk_test": {"delta": 0.1}}, ["risk_test.delta=5e-2", "peft.r=8"])
        {'risk_test': {'delta': 0.05}, 'peft': {'r': 8}}
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for override in overrides:
        key, equals, text = override.partition("=")
        shown = redact(override)
        parts = [part.strip() for part in key.split(".")]
        if not equals:
            raise ConfigError(f"override {shown!r} has no '='; expected key=value, e.g. risk_test.delta=0.05")
        if parts[0].startswith("-"):
            raise ConfigError(f"override {shown!r} must be written without dashes: {shown.lstrip('-')}")
        if not all(parts):
            raise ConfigError(
                f"override {shown!r} has an empty key; expected key=value, e.g. risk_test.delta=0.05"
            )
        section = result
        for depth, part in enumerate(parts[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                above = ".".join(parts[:depth])
                raise ConfigError(
                    f"override {shown!r}: {above} holds {redact(repr(section))}, which has no keys below"
                )
        section[parts[-1]] = _parse(text, f"value of override {shown!r} (quote it if it is text)")
    return result
