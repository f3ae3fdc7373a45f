"""Read YAML files and ``key=value`` overrides into plain dictionaries, and write them back.

How settings are written. Which settings there are, and whether a value is right, is the schema's to say.
"""

from __future__ import annotations

import copy
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.scanner import Scanner

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.secrets import redact

TRUTH_WORDS_OF_YAML_1_1 = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words that YAML 1.1 reads as truth values in any case, and YAML 1.2 as text."""

_MAX_VALUES = 100_000
_MAX_DEPTH = 100
# 010 is eight to some readers and ten to others, 089 a part of a name; -_1 is no number to anyone.
_LEADING_ZERO = re.compile(r"[-+]?(?:0_*[0-9]|_)")


class _YAMLProblem(Exception):
    """A problem with its line, before the place it was read from is known."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


class _Scanner(Scanner):
    """Refuses a file that states another version of YAML: the same words mean other values there."""

    def scan_yaml_directive_value(self, start_mark: Any) -> Any:
        stated = super().scan_yaml_directive_value(start_mark)
        if stated != (1, 2):
            what = "the file says it is YAML {}.{}, and is read as YAML 1.2; remove this line".format(*stated)
            raise _YAMLProblem(start_mark.line + 1, what)
        return stated


class _Constructor(SafeConstructor):
    """The safe constructor, which refuses what no configuration means: keys given twice, keys that are no text."""

    def get_single_data(self) -> Any:
        node = self.composer.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return self.construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        first_line: dict[str, int] = {}
        # The node's own keys, before merge keys (<<) are spread: overriding a merged key is their purpose.
        for key_node, _ in node.value if isinstance(node, MappingNode) else ():
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

    def construct_yaml_int(self, node: ScalarNode) -> Any:
        if _LEADING_ZERO.match(node.value):
            return node.value
        number = int(super().construct_yaml_int(node))
        if abs(number) >= 2**63:
            line = node.start_mark.line + 1
            raise _YAMLProblem(line, "a whole number beyond 64 bits; if it is text, quote it")
        return number


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
# A date, too, is part of a name.
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Writes what readers of YAML 1.1, such as PyYAML, read alike; a value that occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_float(self, data: float) -> ScalarNode:
        node: ScalarNode = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node

    def represent_str(self, data: str) -> ScalarNode:
        quoted = "'" if data.lower() in TRUTH_WORDS_OF_YAML_1_1 else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=quoted)


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)


def _yaml() -> YAML:
    """Return a reader and writer for one document."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner, yaml.Constructor, yaml.Representer = _Scanner, _Constructor, _Representer
    yaml.max_depth = _MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment] # declared as None
    yaml.default_flow_style = False
    yaml.allow_unicode = False
    # No line is folded: ruamel.yaml 0.19 loses a space where it folds quoted text.
    yaml.width = sys.maxsize
    return yaml


def _expanded_size(node: Node, sizes: dict[int, int]) -> int:
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
    if isinstance(node, CollectionNode):
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        for part in parts:
            size += _expanded_size(part, sizes)
            if size > _MAX_VALUES:
                what = f"more than {_MAX_VALUES} values, aliases written out; no configuration has so many"
                raise _YAMLProblem(node.start_mark.line + 1, what)
    sizes[key] = size
    return size


def _parse(text: str, place: str) -> Any:
    """Parse one YAML document; ``place`` is what an error names, a line number is added to it."""
    try:
        return _yaml().load(text)
    except _YAMLProblem as problem:
        raise ConfigError(f"{place}, line {problem.line}: {problem}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable as YAML"
        if isinstance(error, MaxDepthExceededError):
            what = f"values nested deeper than {_MAX_DEPTH} levels"
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
    stream = io.StringIO()
    _yaml().dump(dict(config), stream)
    return stream.getvalue()


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
