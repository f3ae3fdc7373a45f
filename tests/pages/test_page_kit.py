"""The one way in: whatever reaches a page is cleaned and escaped, and no template can leave it out."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import jinja2
import pytest
from markupsafe import Markup

from dynamic_dpo.pages.environment import macro
from dynamic_dpo.pages.shapes import card, note, page, picture, row, section, table
from helpers_pages import Page
from places import ROOT, SOURCE

TEMPLATES = SOURCE / "pages" / "templates"


def test_text_is_cleaned_and_escaped_in_every_place_of_a_shape() -> None:
    wild, tame = "\ud800<b>\x00\"'&", "?&lt;b&gt;\ufffd&#34;&#39;&amp;"
    shape = row(wild, wild, Markup("<svg></svg>"), wild, wild, rest=wild)
    assert shape.count(tame) == 5
    assert "<svg></svg>" in shape


def test_shapes_inside_shapes_stay_html() -> None:
    html = section("s", "Heading", "", card(note("inside"), table(("a",), [("1",)])))
    assert [tag for tag in Page(html).tags if tag in ("section", "div", "p", "td", "th")] == [
        *("section", "div", "p", "div", "th", "th")
    ]


def test_even_html_that_somebody_joined_with_text_is_cleaned() -> None:
    joined = Markup("<p>{}</p>").format("\ud800\x1b")
    assert "<p>?\ufffd</p>" in card(joined)


def test_a_value_that_is_missing_is_an_error_and_no_hole() -> None:
    with pytest.raises(jinja2.UndefinedError, match="lead"):
        macro("shapes.html", "note")("text")


def test_no_template_switches_the_escaping_off() -> None:
    names = [path.name for path in TEMPLATES.iterdir()]
    assert {"page.html", "shapes.html", "style.css"} <= set(names)
    for path in TEMPLATES.iterdir():
        assert not re.search(r"\|\s*safe|autoescape", path.read_text(encoding="utf-8")), path.name


def test_no_html_is_written_outside_the_templates() -> None:
    for folder in ("pages", "runs", "eval/report"):
        for path in (SOURCE / folder).glob("*.py"):
            assert not re.search(r"</|<[a-z]+[ >]", path.read_text(encoding="utf-8")), path


def test_templates_and_style_are_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["dynamic_dpo"]
    for path in TEMPLATES.iterdir():
        assert any(fnmatch(str(path.relative_to(SOURCE)), pattern) for pattern in patterns), path


def test_a_page_is_whole_and_leaves_empty_parts_out() -> None:
    html = page(
        "A <title>", "below", [Markup(), section("one", "One", "")], links=[("to & fro", "a%20b.html")]
    )
    found = Page(html)
    assert found.open == []
    assert found.text.startswith("A <title> A <title> below to & fro One")
    assert ("a", "href", "a%20b.html") in found.attributes
    assert html.startswith("<!DOCTYPE html>\n")


def test_a_picture_is_held_by_the_page_whatever_its_size() -> None:
    html = picture("Beta", "It rose.", b"\x89PNG" * 100_000)
    ((_, _, source),) = (part for part in Page(html).attributes if part[1] == "src")
    assert source.startswith("data:image/png;base64,iVBOR4lQTkeJ")
    assert len(source) > 500_000
