"""Reads an HTML page as a browser would: its elements, their attributes, and the text between them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """The elements of a page, in their order.

    Attributes:
        tags: Names of the elements.
        attributes: Tag, name and value of every attribute.
        structure: What no text of a model or user may change: of every start and end tag its name, the names of its
            attributes, and the values that lead somewhere, name something or choose a style.
        open: Elements that were never closed.
        headings: Texts of the second level's headings.
    """

    def __init__(self, html: str | Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.structure: list[object] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(html if isinstance(html, str) else html.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        told = {name: value for name, value in attrs if name in ("id", "class", "href", "dir", "role")}
        self.structure.append((tag, [name for name, _ in attrs], told))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.structure.append(f"/{tag}")
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_decl(self, decl: str) -> None:
        self.structure.append(decl)

    def handle_comment(self, data: str) -> None:
        self.structure.append(f"<!--{data}")

    def unknown_decl(self, data: str) -> None:
        self.structure.append(f"<![{data}")

    def handle_pi(self, data: str) -> None:
        self.structure.append(f"<?{data}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
