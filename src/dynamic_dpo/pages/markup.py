"""The few shapes an evaluation page is put together from: sections, cards, tables and rows with a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dynamic_dpo.pages.text import cleaned


def text(value: object) -> str:
    """Return a value as text of the page, whatever is in it.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    # A number and its sign stay on one line.
    return escape(cleaned(str(value))).replace(" %", "\u00a0%")


def section(name: str, heading: str, lead: str, *content: str) -> str:
    """Return a section of the page: heading, a sentence that tells how to read it, and what it shows.

    Args:
        name: Its id, unique on the page.
        heading: Plain text.
        lead: Plain text.
        content: HTML.
    """
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{text(heading)}</h2>\n'
        f'<p class="lead">{text(lead)}</p>\n{"".join(content)}</section>'
    )


def card(*content: str, heading: str | None = None) -> str:
    """Return HTML in a frame."""
    title = "" if heading is None else f"<h3>{text(heading)}</h3>"
    return f'<div class="card">{title}{"".join(content)}</div>\n'


def rows(*content: str, scale: Sequence[str] = ()) -> str:
    """Return rows of `row` one below the other, with what stands at the ends and in the middle of their scale."""
    below = "".join(f"<span>{text(mark)}</span>" for mark in scale)
    below = f'<div class="scale" aria-hidden="true">{below}</div>' if scale else ""
    return f'<div class="forest">{"".join(content)}{below}</div>'


def row(name: str, small: str, picture: str, value: str, further: str = "", *, rest: str = "") -> str:
    """Return a row: who, a picture, and the number in words.

    Args:
        name: Plain text, in bold; may be empty.
        small: Plain text below it.
        picture: HTML.
        value: Plain text, in bold.
        further: Plain text after it.
        rest: Plain text in a smaller line below.
    """
    strong = f"<strong>{text(name)}</strong>" if name else ""
    below = f'<span class="small">{text(rest)}</span>' if rest else ""
    return (
        f'<div class="name">{strong}<span class="small">{text(small)}</span></div>{picture}'
        f'<div class="value"><strong>{text(value)}</strong> {text(further)}{below}</div>\n'
    )


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table whose first column names its lines; it scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    body = "\n".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in lines
    )
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>\n{body}\n</tbody></table></div>'
