r"""The text of an HH row: where the prompt ends and the answer begins.

Pure functions on strings with the tags ``\n\nHuman:`` and ``\n\nAssistant:``.
"""

from __future__ import annotations

import re
from typing import Final

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.blank_text import is_blank

ASSISTANT_TAG: Final = "\n\nAssistant:"

_OPENING_TAG: Final = re.compile(r"\s*(Human|Assistant):")


def strip_one_leading_newline(text: str) -> str:
    r"""Return ``text`` without its first newline, if it begins with one.

    Example:
        >>> strip_one_leading_newline("\n\nHello")
        '\nHello'
        >>> strip_one_leading_newline(" Hello")
        ' Hello'
    """
    return text.removeprefix("\r\n") if text.startswith("\r\n") else text.removeprefix("\n")


def split_prompt_and_response(text: str) -> tuple[str, str]:
    r"""Cut a transcript at its last assistant tag.

    Args:
        text: An HH transcript; ``\r\n`` counts as ``\n``.

    Returns:
        ``(prompt, response)``. The prompt keeps the tag; the response keeps its leading blank and loses one
        leading newline.

    Raises:
        DataError: If there is no ``\n\nAssistant:`` (a ``ValueError``).

    Example:
        >>> split_prompt_and_response("\n\nHuman: Hi\n\nAssistant: Hello")
        ('\n\nHuman: Hi\n\nAssistant:', ' Hello')
    """
    text = text.replace("\r\n", "\n")
    before, tag, response = text.rpartition(ASSISTANT_TAG)
    if not tag:
        raise DataError(
            f"no {ASSISTANT_TAG!r} tag in {text[:80]!r}: an HH transcript needs at least one assistant turn"
        )
    return before + tag, strip_one_leading_newline(response)


def continue_prompt(prompt: str, text: str) -> str | None:
    r"""Return what ``text`` says after ``prompt``, or None if it does not begin with it.

    Example:
        >>> continue_prompt("\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant: Go away")
        ' Go away'
    """
    text = text.replace("\r\n", "\n")
    return strip_one_leading_newline(text[len(prompt) :]) if text.startswith(prompt) else None


def has_blank_prompt(prompt: str) -> bool:
    r"""Tell whether nothing was said before the answer: the prompt is no more than its tag."""
    return is_blank(prompt.removesuffix(ASSISTANT_TAG))


def looks_like_hh(text: str) -> bool:
    r"""Tell whether a text opens with an HH tag and holds an assistant turn.

    Example:
        >>> looks_like_hh("\n\nHuman: Hi\n\nAssistant: Hello"), looks_like_hh("Hi")
        (True, False)
    """
    return bool(_OPENING_TAG.match(text)) and ASSISTANT_TAG in text.replace("\r\n", "\n")


def convert_to_triples(chosen_text: str, rejected_text: str) -> dict[str, str] | None:
    r"""Turn the two transcripts of an HH row into prompt, chosen and rejected.

    Args:
        chosen_text: The preferred transcript; its last assistant turn is the chosen answer.
        rejected_text: The other one. It has to begin with the chosen transcript's prompt.

    Returns:
        ``{"prompt", "chosen", "rejected"}``, or None where the chosen text has no assistant turn, the rejected
        text does not continue the same prompt, or a part is blank.

    Example:
        >>> convert_to_triples("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: No")
        {'prompt': '\n\nHuman: Hi\n\nAssistant:', 'chosen': ' Hello', 'rejected': ' No'}
        >>> convert_to_triples("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Ho\n\nAssistant: No") is None
        True
    """
    try:
        prompt, chosen = split_prompt_and_response(chosen_text)
    except DataError:
        return None
    rejected = continue_prompt(prompt, rejected_text)
    if rejected is None or has_blank_prompt(prompt) or is_blank(chosen) or is_blank(rejected):
        return None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
