"""The environment in which templates are filled.

Whatever reaches a template is cleaned, cut where it is endless, and escaped. This happens here, once, so that no
page can forget it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynamic_dpo.pages.text import cleaned, shown


def render(template: str, **values: object) -> str:
    """Return a template filled in.

    Args:
        template: Name of a file in ``templates/``.
        values: What its variables stand for. Text is shown as text; only `Markup` from a `macro` stays HTML.
    """
    return _environment().get_template(template).render(**values)


def macro(template: str, name: str) -> Callable[..., Markup]:
    """Return a macro of a template as a function that gives HTML; its arguments are treated as in `render`.

    Args:
        template: Name of a file in ``templates/``.
        name: Name of the macro in it.
    """
    return cast("Callable[..., Markup]", getattr(_environment().get_template(template).module, name))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dynamic_dpo.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Jinja2 passes every value through this function before it escapes it.
        finalize=_finalize,
    )
    environment.filters["unbroken"] = _unbroken
    return environment


def _finalize(value: object) -> str:
    """Return a value as it may stand on a page.

    Even `Markup` is cleaned, for it may hold text that was joined to it; it is not cut, being the page itself.
    """
    if isinstance(value, Markup):
        return Markup(cleaned(str(value)))
    return shown(str(value))


def _unbroken(value: object) -> str:
    """Keep a number and its percent sign on one line."""
    return str(value).replace(" %", "\u00a0%")
