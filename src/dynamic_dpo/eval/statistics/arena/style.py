"""What an output looks like, apart from what it says: its length and its Markdown, and how two outputs differ.

The features are those of style control in Chatbot Arena (Li, Angelopoulos and Chiang, 2024,
https://lmsys.org/blog/2024-08-28-style-control/) and of Arena-Hard's summary: length, headings, list items, bold.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.statistics.resampling import Array

MarkdownUnit = Literal["density", "count"]
STYLE_FEATURES: Final = ("length", "headings", "lists", "bold")
# Arena-Hard counts the tokens of one tokenizer. A tokenizer of each model's own would make lengths incomparable.
CHARACTERS_PER_TOKEN = 4.0

_CODE = re.compile(r"```[^`]*```")
_HEADING = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST_ITEM = re.compile(r"^[ \t]*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


class Style(NamedTuple):
    """What one output looks like.

    Attributes:
        length: In tokens of four characters.
        headings: Lines that are Markdown headings, outside blocks of code.
        lists: List items, numbered or not, outside blocks of code.
        bold: Bold passages, outside blocks of code.
    """

    length: float
    headings: int
    lists: int
    bold: int


def style_of(text: str) -> Style:
    """Count the features of one output.

    >>> style_of("# Fruit\\n\\n- **fig**\\n- pear\\n")
    Style(length=6.5, headings=1, lists=2, bold=1)
    """
    prose = _CODE.sub("", text)
    return Style(
        len(text) / CHARACTERS_PER_TOKEN,
        len(_HEADING.findall(prose)),
        len(_LIST_ITEM.findall(prose)),
        len(_BOLD.findall(prose)),
    )


def style_difference(own: Style, other: Style, *, markdown: MarkdownUnit = "density") -> Array:
    """Return how an output's style differs from another's; 0 where both are alike. Shape [4], `STYLE_FEATURES`.

    Lengths are compared as (a - b) / (a + b). Markdown is compared as Arena-Hard 2.0 does it, by its density d per
    token, as (d_a - d_b) / (d_a + d_b + 1), or, as version 0.1 does it, by its counts, as lengths are.

    Args:
        own: The one output.
        other: The other.
        markdown: ``density`` or ``count``.

    Raises:
        ConfigError: If ``markdown`` is neither.

    Example:
        >>> style_difference(Style(30, 2, 0, 1), Style(10, 0, 0, 1), markdown="count")
        array([0.5, 1. , 0. , 0. ])
    """
    if markdown not in get_args(MarkdownUnit):
        raise ConfigError(f"statistics.markdown must be density or count, got {markdown!r}")
    a, b = np.array(own, dtype=np.float64), np.array(other, dtype=np.float64)
    if markdown == "count":
        return _relative(a, b)
    # An empty output has no Markdown; its density is 0 and not 0/0.
    dense_a, dense_b = a[1:] / max(a[0], 1.0), b[1:] / max(b[0], 1.0)
    return np.concatenate([_relative(a[:1], b[:1]), (dense_a - dense_b) / (dense_a + dense_b + 1.0)])


def _relative(a: Array, b: Array) -> Array:
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(total), where=total > 0)
