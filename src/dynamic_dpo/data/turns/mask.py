"""Which tokens of an answer are scored: those that the policy writes, the end of each of its turns included.

From spans of characters to tokens of the whole sequence, and from there to the mask of an answer, 1 where a token
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from typing import Final, Literal, get_args

from dynamic_dpo.data.turns.endings import Span
from dynamic_dpo.data.turns.places import TokenPlaces
from dynamic_dpo.errors import ConfigError

AnswerTokens = Literal["assistant", "all"]
ANSWER_TOKENS: Final[tuple[str, ...]] = get_args(AnswerTokens)


def check_answer_tokens(value: str) -> None:
    """Raise `ConfigError` for a setting of the answers' tokens that there is not."""
    if value not in ANSWER_TOKENS:
        raise ConfigError(f"answer_tokens must be one of {', '.join(ANSWER_TOKENS)}, got {value!r}")


def gaps(written: Sequence[Span]) -> list[Span]:
    """Return what lies between the spans.

    Example:
        >>> gaps([Span(0, 3), Span(5, 9)])
        [Span(start=3, end=5)]
    """
    return [Span(before.end, after.start) for before, after in pairwise(written)]


def token_spans(places: TokenPlaces, text: str, ids: Sequence[int], spans: Sequence[Span]) -> list[Span]:
    """Return spans of characters as spans of tokens.

    A token across a border belongs to what follows it, as one across the border of prompt and answer does.

    Args:
        places: Finds places of a text among its tokens.
        text: The text.
        ids: Its tokens.
        spans: Spans of characters, in order.
    """
    found = places(text, ids, [place for span in spans for place in span])
    return [Span(*pair) for pair in zip(found[::2], found[1::2], strict=True)]


def with_turn_ends(
    ids: Sequence[int], foreign: Sequence[Span], *, stops: Container[int], is_blank: Callable[[int], bool]
) -> list[Span]:
    """Give the token that ends a turn to the turn, and the blanks behind it to what follows.

    Args:
        ids: Tokens of the whole sequence.
        foreign: Spans of tokens between two turns of the assistant.
        stops: Tokens that end a turn.
        is_blank: Whether a token shows nothing.

    Returns:
        The spans, each beginning behind the token that ends the turn before, if there is one.

    Example:
        >>> with_turn_ends([7, 7, 2, 0, 5, 5], [Span(4, 6)], stops={2}, is_blank=lambda token: token == 0)
        [Span(start=3, end=6)]
    """
    closed = []
    for start, end in foreign:
        back, on = start, start
        while back and ids[back - 1] not in stops and is_blank(ids[back - 1]):
            back -= 1
        while on < end and ids[on] not in stops and is_blank(ids[on]):
            on += 1
        if back and ids[back - 1] in stops:
            start = back
        elif on < end and ids[on] in stops:
            start = on + 1
        closed.append(Span(start, end))
    return closed


def answer_mask(foreign: Sequence[Span], *, num_prompt: int, num_answer: int) -> list[int] | None:
    """Return the mask of an answer, or None if all of it counts.

    Args:
        foreign: Spans of tokens of the whole sequence that others write.
        num_prompt: Tokens of the prompt.
        num_answer: Tokens of the answer, those included that close it.

    Example:
        >>> answer_mask([Span(3, 5)], num_prompt=2, num_answer=4)
        [1, 0, 0, 1]
    """
    mask = [1] * num_answer
    for start, end in foreign:
        start, end = max(start - num_prompt, 0), min(end - num_prompt, num_answer)
        mask[start:end] = [0] * (end - start)
    return mask if 0 in mask else None


def not_scored(mask: Sequence[int]) -> list[Span]:
    """Return the runs of tokens that a mask leaves out.

    Example:
        >>> not_scored([1, 0, 0, 1, 0])
        [Span(start=1, end=3), Span(start=4, end=5)]
    """
    borders = [place for place, (a, b) in enumerate(pairwise([1, *mask, 1])) if bool(a) != bool(b)]
    return [Span(*pair) for pair in zip(borders[::2], borders[1::2], strict=True)]


def last_scored(mask: Sequence[int]) -> int:
    """Return the length of an answer up to its last token that counts; 0 if none does.

    Example:
        >>> last_scored([1, 0, 1, 0, 0])
        3
    """
    return next((place for place in range(len(mask), 0, -1) if mask[place - 1]), 0)
