"""What a row gives its chat template besides roles and contents: fields of messages, tools, settings.

On disk it stands in a column of its own, as JSON, empty for nearly all rows: Arrow wants one type a column, and the
arguments of a tool call have any. A prompt is the same prompt with and without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow.compute as pc
from datasets import Dataset

EXTRAS: Final = "extras"
"""Name of the column."""

_BARE: Final = ("role", "content")
# Fields of messages that carry meaning, and how a template names them. Many speak of thinking or enable_thinking, and
# have no place for the field of that name.
_NAMED: Final = {
    "tool_calls": "tool_calls",
    "reasoning_content": "reasoning_content",
    "thinking": r"""\.thinking\b|['"]thinking['"]""",
}


def without_empty_extras(rows: Dataset) -> Dataset:
    """Return rows without the column where none of them has any."""
    if EXTRAS in rows.column_names and not pc.any(pc.not_equal(rows.data.column(EXTRAS), "")).as_py():
        return rows.remove_columns(EXTRAS)
    return rows


def split_extras(pair: Any, template: Mapping[str, Any]) -> tuple[Any, str]:
    """Return a pair whose messages have role and content alone, and the rest as JSON; empty where there is none.

    Args:
        pair: A named tuple of texts or messages, such as prompt and answers.
        template: ``tools`` and ``kwargs`` of the row.
    """
    extras: dict[str, Any] = dict(template)
    for name in pair._fields:
        messages = getattr(pair, name)
        if not _are_messages(messages) or all(len(message) == len(_BARE) for message in messages):
            continue
        extras[name] = [
            {field: value for field, value in message.items() if field not in _BARE} for message in messages
        ]
        pair = pair._replace(**{name: [{field: message[field] for field in _BARE} for message in messages]})
    return pair, json.dumps(extras, ensure_ascii=False) if extras else ""


def _are_messages(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(item, dict) for item in part)


def join_extras(pair: Any, written: str | None) -> tuple[Any, dict[str, Any]]:
    """Put back what `split_extras` has taken off.

    Returns:
        The pair, and ``tools`` and ``kwargs`` of its row.
    """
    if not written:
        return pair, {}
    extras = json.loads(written)
    whole = {
        name: [{**bare, **more} for bare, more in zip(getattr(pair, name), extras.pop(name), strict=True)]
        for name in pair._fields
        if name in extras
    }
    return pair._replace(**whole), extras


def template_arguments(extras: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a chat template: those of all rows, and over them the row's own.

    >>> template_arguments({"kwargs": {"enable_thinking": True}}, {"enable_thinking": False, "date": "today"})
    {'enable_thinking': True, 'date': 'today'}
    """
    tools = {"tools": extras["tools"]} if "tools" in extras else {}
    return {**kwargs, **extras.get("kwargs", {}), **tools}


def unwritten_field(
    template: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
) -> str | None:
    """Return a field that carries meaning and that a template never names; ``None`` where it names them all."""
    held = {field for message in messages for field in _NAMED if message.get(field)}
    if arguments.get("tools"):
        held.add("tools")
    return next(
        (field for field in sorted(held) if not re.search(_NAMED.get(field, field), template)),
        None,
    )
