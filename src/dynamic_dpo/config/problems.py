"""Failed checks in words: one line per problem, and the nearest known key for a key that is unknown.

Takes pydantic's errors and a model to look keys up in, and returns lines of text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dynamic_dpo.config.base import fields_by_key, named_sections_of, section_of, walk
from dynamic_dpo.config.phrases import bounds_of, given, requirement, shown
from dynamic_dpo.config.yaml_files import TRUTH_WORDS_OF_YAML_1_1

_BOUND_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_UNKNOWN_KEY = {"extra_forbidden", "invalid_key"}
_NEAR_ENOUGH = 0.7
_SAME_SECTION_BONUS = 0.2


def describe_problems(
    model: type[BaseModel], config: Mapping[str, Any], error: ValidationError
) -> tuple[list[str], list[str]]:
    """Put a validation error of a model into words.

    Args:
        model: The model that refused its input.
        config: The input.
        error: The model's error.

    Returns:
        One finished line for each key with a wrong value, and the paths of unknown keys.
    """
    wrong: dict[str, tuple[FieldInfo | None, list[ErrorDetails]]] = {}
    unknown: list[str] = []
    for detail in error.errors(include_url=False):
        path, field = _locate(model, detail["loc"])
        if detail["type"] in _UNKNOWN_KEY:
            unknown.append(path)
        else:
            wrong.setdefault(path, (field, []))[1].append(detail)
    return [_line(path, field, details, config) for path, (field, details) in wrong.items()], unknown


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """Return the path of a setting and its field; what a location says about unions and lists is left out."""
    path: list[str] = []
    field: FieldInfo | None = None
    section: type[BaseModel] | None = model
    named: type[BaseModel] | None = None
    for part in location:
        if named is not None:
            section, named = named, None
            field = None
        elif section is not None:
            field = fields_by_key(section).get(str(part))
            section = section_of(field) if field is not None else None
            named = named_sections_of(field) if field is not None else None
        else:
            break
        path.append(str(part))
    return ".".join(path), field


def _line(path: str, field: FieldInfo | None, details: list[ErrorDetails], config: Mapping[str, Any]) -> str:
    """Word the problem of one key; a union reports one error per option, which is still one problem."""
    by_type = {detail["type"]: detail for detail in details}
    value, is_default = _value_at(config, path, details[0]["input"])
    got = f"got {given(value)}{' (the default)' if is_default else ''}"
    if "missing" in by_type:
        return f"{path} is required: {field.description if field is not None else ''}"
    if "setting" in by_type:
        return f"{path} {by_type['setting']['ctx']['expectation']}, {got}"
    if field is None or section_of(field) is not None or named_sections_of(field) is not None:
        return f"{path} must be a section of keys and values, {got}"
    bounds = bounds_of(field)
    if _BOUND_ERRORS & by_type.keys() and bounds is not None:
        return f"{path} {bounds.requirement()}, {got}"
    if "finite_number" in by_type:
        return f"{path} must be a finite number, {got}"
    if "string_too_short" in by_type:
        return f"{path} must not be empty"
    return f"{path} {requirement(field.annotation)}, {got}{_advice(requirement(field.annotation), value)}"


def _value_at(config: Mapping[str, Any], path: str, otherwise: Any) -> tuple[Any, bool]:
    """Return the value given at a path and False, or ``otherwise`` and whether it is a default.

    The whole value, where pydantic names the item of a list that is wrong.
    """
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping):
            # A text that stands for a section: what is wrong was given, in short form.
            return otherwise, False
        if part not in value:
            return otherwise, True
        value = value[part]
    return value, False


def _advice(required: str, value: Any) -> str:
    """Say how to write the number or truth value that a text was meant to be; empty where it was none.

    >>> _advice("must be a number", "5e-7"), _advice("must be true or false", "Yes")
    ('; write 5e-7, without quotes', '; write true')
    """
    if not isinstance(value, str):
        return ""
    if "true or false" in required and value.lower() in TRUTH_WORDS_OF_YAML_1_1:
        return f"; write {TRUTH_WORDS_OF_YAML_1_1[value.lower()]}"
    try:
        number = float(value)
    except ValueError:
        return ""
    if "number" not in required or not math.isfinite(number):
        return ""
    return f"; write {shown(int(number) if number.is_integer() else number)}, without quotes"


def known_paths(model: type[BaseModel]) -> dict[str, str]:
    """Return every path a file may hold, each with the path to suggest for it.

    Attribute names lead to their YAML keys: ``risk_test.momentum`` to ``risk_test.lambda``.
    """
    paths = {path: path for path, _, _ in walk(model)}
    for section_name, field in fields_by_key(model).items():
        section = section_of(field)
        for name, inner in section.model_fields.items() if section is not None else ():
            if inner.alias is not None:
                paths.setdefault(f"{section_name}.{name}", f"{section_name}.{inner.alias}")
    return paths


def nearest(path: str, known: Mapping[str, str] | Iterable[str]) -> list[str]:
    """Return the known paths that a mistyped or misplaced key most likely means: none, one or two.

    A key spelled right in the wrong section is found before a merely similar one in the right section.

    Args:
        path: The unknown key with its section.
        known: Known paths, or a mapping from spellings to paths.

    Example:
        >>> known = ["risk_test.delta", "dpo_training.learning_rate", "sft_training.learning_rate"]
        >>> nearest("dpo_training.learnin_rate", known)
        ['dpo_training.learning_rate']
        >>> nearest("dpo_training.delta", known), nearest("learning_rate", known), nearest("tokens", known)
        (['risk_test.delta'], ['dpo_training.learning_rate', 'sft_training.learning_rate'], [])
    """
    targets = dict(known) if isinstance(known, Mapping) else {candidate: candidate for candidate in known}
    section, _, key = _normal(path).rpartition(".")
    scores: dict[str, float] = {}
    for candidate, target in targets.items():
        candidate_section, _, candidate_key = _normal(candidate).rpartition(".")
        likeness = SequenceMatcher(None, key, candidate_key).ratio()
        if likeness >= _NEAR_ENOUGH:
            # An exact name counts double the bonus, so that its place matters only among equals.
            score = likeness + (2 * _SAME_SECTION_BONUS if likeness == 1 else 0)
            score += _SAME_SECTION_BONUS if section == candidate_section else 0
            scores[target] = max(score, scores.get(target, 0.0))
    best = max(scores.values(), default=0.0)
    return [target for target, score in scores.items() if score == best][:2]


def _normal(path: str) -> str:
    return path.lower().replace("-", "_")
