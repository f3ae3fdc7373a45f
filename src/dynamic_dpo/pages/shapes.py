"""The shapes that a page is put together from: the page itself, sections, cards, tables, pictures, texts.

What is annotated `Markup` is HTML from another shape; anything else is plain text, whatever stands in it. How a shape
looks in HTML is written in ``templates/shapes.html``, its style in ``templates/style.css``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from dynamic_dpo.pages.environment import macro, render

_shape = partial(macro, "shapes.html")


class Chip(NamedTuple):
    """A word or two in a small frame beside a name.

    Attributes:
        text: The words.
        kind: ``good``, ``bad`` or neither.
    """

    text: str
    kind: str = ""


class Output(NamedTuple):
    """What one model wrote for a prompt.

    Attributes:
        name: Who wrote it.
        text: What was written.
        chips: What is to be said of it.
        is_marked: Whether it is the one to look at first.
    """

    name: str
    text: str
    chips: Sequence[Chip] = ()
    is_marked: bool = False


class Remark(NamedTuple):
    """What somebody said about outputs.

    Attributes:
        heading: Who, and to what effect.
        text: The words, folded away; may be empty.
    """

    heading: str
    text: str


def page(
    title: str, subtitle: str, sections: Iterable[Markup], *, links: Iterable[tuple[str, str]] = ()
) -> str:
    """Return a whole page that stands alone: style inside, nothing fetched, no script.

    Args:
        title: Heading, and the name of the browser's tab.
        subtitle: One line below it.
        sections: The page's parts from top to bottom; empty ones leave no trace.
        links: Text and address of further pages.
    """
    return render("page.html", title=title, subtitle=subtitle, sections=sections, links=links)


def section(name: str, heading: str, lead: str, *content: Markup) -> Markup:
    """Return a section of the page: heading, a sentence that tells how to read it, and what it shows.

    Args:
        name: Its id, unique on the page.
        heading: What it is about.
        lead: The sentence; may be empty.
        content: What it shows.
    """
    return _shape("section")(name, heading, lead, content)


def alarm(heading: str, sentences: Iterable[str]) -> Markup:
    """Return a box that nobody overlooks."""
    return _shape("alarm")(heading, sentences)


def card(*content: Markup, heading: str | None = None) -> Markup:
    """Return content in a frame."""
    return _shape("card")(content, heading)


def findings(sentences: Iterable[str]) -> Markup:
    """Return sentences one below the other, each with a bullet."""
    return _shape("findings")(sentences)


def note(text: str, *, lead: str = "") -> Markup:
    """Return a small paragraph, its first words (``lead``) in bold."""
    return _shape("note")(text, lead)


def legend(keys: Iterable[tuple[str, str]]) -> Markup:
    """Return what the colours of a picture mean: class of the style sheet, and meaning."""
    return _shape("legend")(keys)


def rows(*content: Markup, scale: Sequence[str] = ()) -> Markup:
    """Return rows of `row` one below the other, with what stands at the ends and in the middle of their scale."""
    return _shape("rows")(content, scale)


def row(name: str, small: str, picture: Markup, value: str, further: str = "", *, rest: str = "") -> Markup:
    """Return a row: who, a picture, and the number in words.

    Args:
        name: In bold; may be empty.
        small: Below the name.
        picture: HTML.
        value: The number, in bold.
        further: After the number.
        rest: A smaller line below it.
    """
    return _shape("row")(name, small, picture, value, further, rest)


def table(header: Sequence[str], lines: Iterable[Sequence[object]], *, caption: str = "") -> Markup:
    """Return a table whose first column names its lines; it scrolls by itself where the page is narrow."""
    return _shape("table")(header, lines, caption)


def key_figures(figures: Iterable[tuple[str, str]]) -> Markup:
    """Return figures, each in a card of its own: label and value."""
    return _shape("key_figures")(figures)


def pictures(*content: Markup) -> Markup:
    """Return what `picture` gave, side by side where there is room."""
    return _shape("pictures")(content)


def picture(title: str, caption: str, png: bytes, *, is_wide: bool = False) -> Markup:
    """Return a PNG, which the page then holds itself, with its caption.

    Args:
        title: Heading.
        caption: What the reader sees; also read out in place of the picture.
        png: The picture.
        is_wide: Whether it takes the whole width.
    """
    return _shape("picture")(title, caption, Markup(base64.b64encode(png).decode()), is_wide)


def side_by_side(
    heading: str,
    turns: Sequence[tuple[str, str]],
    outputs: Iterable[Output],
    *,
    chips: Iterable[Chip] = (),
    remarks: Iterable[Remark] = (),
) -> Markup:
    """Return the outputs for one prompt next to each other.

    Args:
        heading: Which prompt this is.
        turns: The conversation, as role and text; all but the last turn are folded away.
        outputs: What was written.
        chips: What is to be said of the prompt.
        remarks: What was said about the outputs.
    """
    return _shape("side_by_side")(heading, chips, turns, outputs, remarks)


def made_with(groups: Mapping[str, Mapping[str, object]]) -> Markup:
    """Return what the numbers were made with, folded away: it matters to a few readers, and then in full."""
    tables = [table((), values.items(), caption=name) for name, values in groups.items()]
    return _shape("made_with")(tables)
