r"""Where an answer ends: with the last turn of the assistant. What others say behind it is no part of it.

An answer in messages is a list of turns; one in text has turns where its prompt is an HH transcript.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from dynamic_dpo.data.hh_text import ASSISTANT_TAG

# A human turn with the tag that ends it, or up to the end of the text.
_HUMAN_TURN: Final = re.compile(r"\n\nHuman:(?:.*?\n\nAssistant:|.*\Z)", re.DOTALL)


class Ending(NamedTuple):
    """An answer up to its end, and the number of turns that stood behind it."""

    answer: Any
    num_dropped: int


def end_of_messages(answer: list[dict[str, Any]]) -> Ending:
    """Return an answer without the turns behind the last one of the assistant.

    Example:
        >>> end_of_messages([{"role": "assistant", "content": "a"}, {"role": "user", "content": "thanks"}])
        Ending(answer=[{'role': 'assistant', 'content': 'a'}], num_dropped=1)
    """
    end = len(answer)
    while end and answer[end - 1]["role"] != "assistant":
        end -= 1
    return Ending(answer[:end], len(answer) - end)


def end_of_text(prompt: str, answer: str) -> Ending:
    r"""Return an answer in text without what the human says behind it, where the prompt is an HH transcript.

    Example:
        >>> end_of_text("\n\nHuman: q\n\nAssistant:", " a\n\nHuman: thanks")
        Ending(answer=' a', num_dropped=1)
        >>> end_of_text("Write a dialogue.", " A:\n\nHuman: thanks").num_dropped
        0
    """
    num_dropped = 0
    # A tag with nothing behind it is the place of an answer that was not given.
    while (turns := human_turns(prompt, answer)) and not answer[turns[-1].end :].strip():
        answer = answer[: turns[-1].start]
        num_dropped += 1
    return Ending(answer, num_dropped)


class Span(NamedTuple):
    """Characters or tokens from ``start`` to before ``end``."""

    start: int
    end: int


def human_turns(prompt: str, answer: str) -> list[Span]:
    r"""Return where the human speaks in an answer, tags included, if the prompt is an HH transcript.

    Example:
        >>> human_turns("\n\nHuman: q\n\nAssistant:", " a\n\nHuman: r\n\nAssistant: b")
        [Span(start=2, end=24)]
    """
    if "\n\nHuman:" not in answer or not prompt.rstrip().endswith(ASSISTANT_TAG):
        return []
    return [Span(*match.span()) for match in _HUMAN_TURN.finditer(answer)]
