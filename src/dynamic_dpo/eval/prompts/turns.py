"""Prompts of several turns: the user's further turns, and the right answers to them, beside the first.

A prompt's messages are those of its first turn. What the user says next stands in its ``meta``, since what it answers
is not there yet: every model goes on from its own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.utils.blank_text import is_blank
from dynamic_dpo.utils.hashing import content_hash

TURNS, REFERENCES = "turns", "references"
_REFERENCE_FIELDS: Final = ("references", "reference")


def given_turns(row: Mapping[str, Any]) -> list[Any] | None:
    """Return the user's turns of a row, texts if it is in order; ``None`` where it has no list of them.

    >>> given_turns({"turns": [{"content": "Hi"}, "And now?"]}), given_turns({"prompt": "Hi"})
    (['Hi', 'And now?'], None)
    """
    value = row.get("turns")
    if isinstance(value, list) and value:
        return [turn.get("content") if isinstance(turn, Mapping) else turn for turn in value]
    value = row.get("prompt")
    # A list of anything else is a conversation.
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        return list(value)
    return None


def with_turns(prompt: PromptRecord, row: Mapping[str, Any]) -> PromptRecord:
    """Return a prompt with all turns of its row, its id made from all of them.

    Raises:
        BadRow: If a turn is no text, or blank.
    """
    turns = given_turns(row)
    if turns is None:
        return prompt
    for turn in turns:
        if not isinstance(turn, str):
            raise BadRow("not_text", turn)
        if is_blank(turn):
            raise BadRow("nothing_to_answer", turns)
    found: list[Any] = next((row[name] for name in _REFERENCE_FIELDS if isinstance(row.get(name), list)), [])
    meta: dict[str, Any] = {**prompt.meta, TURNS: turns}
    if found:
        meta[REFERENCES] = [text if isinstance(text, str) else "" for text in found]
    id_ = prompt.id if len(turns) == 1 else content_hash([prompt.messages, turns[1:]])
    return PromptRecord(id_, prompt.messages, prompt.reference, prompt.category, meta)


def turns_of(prompt: PromptRecord) -> list[str]:
    """Return the user's turns; of a prompt that has only one, its last message."""
    turns: list[str] = prompt.meta.get(TURNS) or [prompt.messages[-1]["content"]]
    return turns


def references_of(prompt: PromptRecord, num_turns: int) -> list[str]:
    """Return the right answers to the first turns; none where one of them is missing."""
    references = list(prompt.meta.get(REFERENCES) or [])[:num_turns]
    is_whole = len(references) == num_turns and not any(is_blank(text) for text in references)
    return references if is_whole else []


def turn_prompt(prompt: PromptRecord, answers: Sequence[str]) -> PromptRecord:
    """Return what a model is asked after it has given some answers; its id is a hash of the conversation so far.

    Example:
        >>> prompt = with_turns(PromptRecord.of([{"role": "user", "content": "Hi"}]), {"turns": ["Hi", "And?"]})
        >>> [message["content"] for message in turn_prompt(prompt, ["Hello."]).messages]
        ['Hi', 'Hello.', 'And?']
    """
    messages = list(prompt.messages)
    for answer, turn in zip(answers, turns_of(prompt)[1:], strict=False):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return PromptRecord.of(messages, category=prompt.category)
