"""What all sections of a configuration share: strict types, immutability, writing and hashing.

A section says what its own keys mean; `problems` turns a failed check into a readable line.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dynamic_dpo.config.yaml_files import dump_yaml
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.secrets import redact_values

TextT = TypeVar("TextT", str, str | None)


class Section(BaseModel):
    """A mapping of known keys: a whole number is fine where a number is expected, nothing else is coerced."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        # A default is checked too: beta_0 = 5 contradicts the default of beta_max.
        validate_default=True,
        # A validation error is shown to users by `problems`, which has the whole document at hand.
        hide_input_in_errors=True,
    )


class PassthroughSection(Section):
    """A section that hands the keys it does not know on to the Hugging Face training arguments."""

    model_config = ConfigDict(extra="allow")

    @property
    def extra(self) -> dict[str, Any]:
        """The keys handed on, by their names in ``transformers.TrainingArguments``."""
        return dict(self.model_extra or {})


class Document(Section):
    """A whole configuration file."""

    @model_validator(mode="before")
    @classmethod
    def _null_section_means_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = fields_by_key(cls)
        return {
            key: value
            for key, value in data.items()
            if not (value is None and key in fields and _holds_sections(fields[key]))
        }

    def contradictions(self) -> list[str]:
        """Return a finished line for each setting that others rule out; every setting by itself is right."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return all settings under their YAML names, defaults included, as plain values."""
        return self.model_dump(by_alias=True)

    def save(self, path: str | Path) -> None:
        """Write the settings as YAML, without secrets; the file appears whole or not at all.

        Args:
            path: The file to write; its folder is created if needed, an older file is replaced.

        Raises:
            OSError: If the file cannot be written.
        """
        write_text(path, dump_yaml(redact_values(self.to_dict())))

    def hash(self) -> str:
        """Return the SHA-256 of all settings as 64 hex digits, whatever their order in the file."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def refuse(expectation: str) -> NoReturn:
    """Reject the value at hand from within a validator.

    Args:
        expectation: What follows the key in the message, e.g. ``"must be at most beta_max (2.0)"``; the value
            that was given is added to it.
    """
    # Text in braces would be taken for a placeholder of the template.
    raise PydanticCustomError("setting", "{expectation}", {"expectation": expectation})


def refuse_fault(value: TextT, fault_of: Callable[[str], str | None]) -> TextT:
    """Return a text, or reject it with what ``fault_of`` says of it; ``None`` passes."""
    if value is not None and (fault := fault_of(value)) is not None:
        refuse(fault)
    return value


def fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields under their YAML names, in their order of definition."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, optional or not; ``None`` for a field of plain values."""
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Section)), None)


def named_sections_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds many of, under names the user chooses; ``None`` otherwise."""
    arguments = get_args(field.annotation)
    if get_origin(field.annotation) is dict and issubclass(arguments[1], Section):
        section: type[Section] = arguments[1]
        return section
    return None


def _holds_sections(field: FieldInfo) -> bool:
    """Whether a field holds one section, or many under names, and cannot itself be null."""
    return section_of(field) is field.annotation or named_sections_of(field) is not None


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section] | None]]:
    """Yield ``(path, field, section)`` for each key of a model, a section before the keys inside it.

    ``section`` is ``None`` for a plain value. Names that users choose appear as ``<name>``.
    """
    for key, field in fields_by_key(model).items():
        path = prefix + key
        section, named = section_of(field), named_sections_of(field)
        yield path, field, section or named
        if section is not None:
            yield from walk(section, f"{path}.")
        elif named is not None:
            yield from walk(named, f"{path}.<name>.")
