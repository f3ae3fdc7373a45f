"""Pairs under other names: Orca's ``question``, Argilla's ``input``, ShareGPT's ``from`` and ``value``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dynamic_dpo.data.shapes.options import ShapeOptions

_PROMPTS: Final = ("question", "instruction", "input", "query")
_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",
    "observation": "tool",
}


def has_prompt_elsewhere(row: Mapping[str, Any]) -> bool:
    """Return whether a row has two answers in text, no prompt, and a prompt under another name."""
    is_pair = isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str)
    return is_pair and row.get("prompt") is None and _found(row) != []


def with_prompt(row: Mapping[str, Any], options: ShapeOptions) -> dict[str, Any]:
    """Rewrite a row whose prompt has another name; an instruction and its input are one prompt, a line each.

    Answers that both begin with the prompt are whole texts, and it is taken off them.
    """
    names = _found(row)
    if {"instruction", "input"} <= set(names):
        names = ["instruction", "input"]
    else:
        names = names[:1]
    prompt = "\n".join(row[name] for name in names)
    rest = {name: value for name, value in row.items() if name not in names}
    answers = {name: row[name] for name in ("chosen", "rejected")}
    if all(answer.startswith(prompt) for answer in answers.values()):
        answers = {name: answer[len(prompt) :] for name, answer in answers.items()}
    return {**rest, "prompt": prompt, **answers}


def _found(row: Mapping[str, Any]) -> list[str]:
    return [name for name in _PROMPTS if isinstance(row.get(name), str) and row[name].strip()]


def is_sharegpt(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a list of turns, and two answers that are turns of their own."""
    turns = row.get("conversations")
    return isinstance(turns, list) and row.get("prompt") is None and row.get("chosen") is not None


def from_conversations(row: Mapping[str, Any], options: ShapeOptions) -> dict[str, Any]:
    """Rewrite a row of ``conversations``, ``chosen`` and ``rejected``; an answer may be one turn or several."""
    rest = {name: value for name, value in row.items() if name != "conversations"}
    answers = {
        name: [row[name]] if isinstance(row.get(name), Mapping) else row.get(name)
        for name in ("chosen", "rejected")
    }
    return {**rest, "prompt": row["conversations"], **answers}


def as_message(item: Any) -> Any:
    """Return a turn in ShareGPT's words, ``from`` and ``value``, as a message; anything else as it is.

    >>> as_message({"from": "human", "value": "Hi"})
    {'role': 'user', 'content': 'Hi'}
    """
    if not isinstance(item, Mapping) or "role" in item or "from" not in item or "value" not in item:
        return item
    rest = {name: value for name, value in item.items() if name not in ("from", "value")}
    speaker = item["from"]
    role = _ROLES.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    return {**rest, "role": role, "content": item["value"]}
