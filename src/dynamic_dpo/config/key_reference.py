"""Every key with its type, default and meaning, derived from the schema: ``--help-all`` and the documentation.

``python -m dynamic_dpo.config.key_reference > docs/configuration.md`` writes the reference; a test keeps it true.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dynamic_dpo.config.base import PassthroughSection, walk
from dynamic_dpo.config.phrases import kind_with_bounds, shown
from dynamic_dpo.config.schema import EvaluationConfig, LoopConfig, TrainingConfig

_PASSTHROUGH = (
    "Any other field of transformers.TrainingArguments may be set here under its own name, "
    "e.g. weight_decay or lr_scheduler_type."
)

_PREAMBLE = """\
# Configuration

<!-- Generated: python -m dynamic_dpo.config.key_reference > docs/configuration.md -->

A command reads one YAML file and then `key=value` settings, which replace what the file says:

```
train-dpo --config configs/dpo.yaml risk_test.delta=0.05 dpo_training.learning_rate=1e-6
```

Every section and every key may be left out; a section that is `null` has its defaults. A key that is not
known, has a wrong type, is out of range or contradicts another is an error, and all errors are reported at
once with their full paths. A key that appears twice is an error with both lines. Files are YAML 1.2: numbers
are written without quotes (`5e-7`, `1e3`), `true` and `false` in full (`yes`, `no`, `on`, `off` are text);
whole numbers may stand where numbers are expected. The resolved configuration is saved with each run.
"""


class KeyInfo(NamedTuple):
    """One key in words: its full path, the type with its range, the default and the meaning."""

    path: str
    type: str
    default: str
    meaning: str


class _Group(NamedTuple):
    """A section, or the keys outside sections under an empty name."""

    name: str
    intro: str
    passes_through: bool
    keys: list[KeyInfo]


def describe_keys(model: type[BaseModel]) -> list[KeyInfo]:
    """Return every key of a configuration in its order, sections themselves left out.

    Args:
        model: ``TrainingConfig``, ``EvaluationConfig`` or a section.

    Example:
        >>> describe_keys(TrainingConfig)[0].path
        'policy_name'
        >>> next(key for key in describe_keys(TrainingConfig) if key.path == "risk_test.lambda")[:3]
        ('risk_test.lambda', 'number in [0, 1]', '0.1')
    """
    return [key for group in _groups(model) for key in group.keys]


def render_help(model: type[BaseModel] = TrainingConfig, *, width: int = 100) -> str:
    """Return all keys for a terminal, each as ``path = default (type)`` with its meaning below.

    Args:
        model: The configuration to describe.
        width: Columns of the terminal.
    """
    lines: list[str] = []
    for group in _groups(model):
        lines += ["", *textwrap.wrap(f"{group.name or 'top level'}: {group.intro}", width)]
        for key in group.keys:
            lines.append(f"  {key.path} = {key.default}  ({key.type})")
            lines += textwrap.wrap(key.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if group.passes_through:
            lines += textwrap.wrap(_PASSTHROUGH, width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines[1:]) + "\n"


def render_markdown() -> str:
    """Return the reference documentation of all files."""
    parts = [_PREAMBLE]
    of_training = {group.name for group in _groups(TrainingConfig)}
    for title, model, left_out in (
        ("Training file", TrainingConfig, set()),
        ("File of a loop", LoopConfig, of_training),
        ("Evaluation file", EvaluationConfig, set()),
    ):
        parts.append(f"## {title}\n\n{_intro_of(model)}\n")
        for group in _groups(model):
            if group.name in left_out:
                continue
            heading = (
                f"### `{group.name}`\n\n{group.intro}" if group.name else f"### Top level\n\n{group.intro}"
            )
            rows = [
                f"| `{key.path}` | {_cell(key.type)} | `{_cell(key.default)}` | {_cell(key.meaning)} |"
                for key in group.keys
            ]
            table = "\n".join(["| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows])
            parts.append(f"{heading}\n\n{table}\n" + (f"\n{_PASSTHROUGH}\n" if group.passes_through else ""))
    return "\n".join(parts)


def _groups(model: type[BaseModel]) -> list[_Group]:
    groups = [_Group("", "The models and the number format.", False, [])]
    for path, field, section in walk(model):
        if section is None:
            owner = next(g for g in reversed(groups) if not g.name or path.startswith(f"{g.name}."))
            owner.keys.append(
                KeyInfo(path, kind_with_bounds(field), _default(field), field.description or "")
            )
            continue
        intro = f"{field.description or ''} {_intro_of(section)}".strip()
        groups.append(_Group(path, intro, issubclass(section, PassthroughSection), []))
    return [group for group in groups if group.keys]


def _intro_of(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split()).replace(":func:", "").replace("``", "`")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    text = shown(value)
    # A prompt would fill the page; the shipped file shows it whole.
    return textwrap.shorten(text, 40, placeholder=" …") if isinstance(value, str) else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render_markdown(), end="")
