"""Lets the site show the examples of docstrings as code: they stand under "Example:", which it takes for prose."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(?P<indent>\s*)Example:\s*$", re.M)


class Examples(griffe.Extension):
    """Renames the section as the reader wants it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\g<indent>Examples:", obj.docstring.value)
