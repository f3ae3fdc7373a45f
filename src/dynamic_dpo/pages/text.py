"""Makes what a model, a person or a file said fit to be shown."""

from __future__ import annotations

import re

# C0 controls other than tab and line feed, DEL and C1 controls: a browser or terminal would act on them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cleaned(text: str) -> str:
    """Return what a model wrote so that any file can hold it: stray surrogates and control characters replaced.

    >>> cleaned("a\\x00b\\ud800c\\r\\nd")
    'a\\ufffdb?c\\nd'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("\ufffd", text).encode("utf-8", "replace").decode("utf-8")
