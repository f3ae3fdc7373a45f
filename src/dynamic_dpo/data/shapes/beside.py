"""What a row holds beside prompt and answers: a system text, settings of its chat template, what nothing reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.utils.blank_text import is_blank

CARRIED: Final = ("tool_calls", "reasoning_content", "thinking", "tool_call_id")
"""What a message may have besides role and content, and its chat template is given."""
TEMPLATE_COLUMNS: Final = frozenset(("tools", "chat_template_kwargs"))
"""Columns that the chat template is given."""
NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})
"""Values that say nothing: Arrow fills them in where other rows have some."""

_WITH_MESSAGES: Final = ("prompt", "prompt_messages", "messages", "completion", "chosen", "rejected")


def clean_text(text: str) -> str:
    """Return a text that can be written; ``not_text`` for half a surrogate pair, which JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # No tokenizer and no file takes it.
        raise BadRow("not_text", text) from None
    return text


def template_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``tools`` and the further settings, ``kwargs``, that a row gives its chat template.

    Raises:
        BadRow: ``bad_template_settings``.

    Example:
        >>> template_settings({"tools": "[]", "chat_template_kwargs": '{"enable_thinking": false}'})
        {'kwargs': {'enable_thinking': False}}
    """
    found: dict[str, Any] = {}
    for column, name, kind in (("tools", "tools", list), ("chat_template_kwargs", "kwargs", dict)):
        value = row.get(column)
        if isinstance(value, str) and value.strip():  # As JSON, since Arrow wants one type a column.
            try:
                value = json.loads(value)
            except ValueError:
                raise BadRow("bad_template_settings", f"{column} is no JSON: {value!r}") from None
        if value in NOTHING or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, kind) or (
            kind is list and not all(isinstance(item, Mapping) for item in value)
        ):
            raise BadRow("bad_template_settings", f"{column} is {type(value).__name__}: {value!r}")
        found[name] = value
    return found


def with_system(prompt: Any, row: Mapping[str, Any]) -> Any:
    """Return a prompt with its row's system text before it, as a turn of its own.

    Raises:
        BadRow: ``not_text``; ``needs_template`` before a prompt in plain text; ``two_systems``.

    Example:
        >>> with_system([{"role": "user", "content": "Hi"}], {"system": "Be brief."})[0]
        {'role': 'system', 'content': 'Be brief.'}
    """
    given = [row[name] for name in ("system", "system_prompt") if row.get(name) not in NOTHING]
    if not given:
        return prompt
    system = given[0]
    if not isinstance(system, str):
        raise BadRow("not_text", f"system is {type(system).__name__}: {system!r}")
    if is_blank(system):
        return prompt
    if not isinstance(prompt, list):
        raise BadRow("needs_template", system)
    turn = {"role": "system", "content": clean_text(system)}
    if prompt[:1] == [turn]:
        return prompt
    if prompt and prompt[0]["role"] == "system":
        raise BadRow("two_systems", f"{system!r} and {prompt[0]['content']!r}")
    return [turn, *prompt]


def unused_names(row: Mapping[str, Any], read: frozenset[str]) -> tuple[str, ...]:
    """Return the columns of a row that say something and are not read; of a message as ``messages.NAME``.

    Example:
        >>> unused_names({"prompt": [{"role": "user", "content": "Hi", "name": "Ann"}], "source": "x"}, frozenset())
        ('prompt', 'source', 'messages.name')
    """
    names = [name for name, value in row.items() if name not in read and value not in NOTHING]
    fields = {
        f"messages.{field}"
        for name in _WITH_MESSAGES
        if isinstance(row.get(name), list)
        for item in row[name]
        if isinstance(item, Mapping)
        for field, value in item.items()
        if field not in ("role", "content", "from", "value", *CARRIED) and value not in NOTHING
    }
    return (*names, *sorted(fields))
