"""Makes what a model, a person or a file said fit to be shown."""

from __future__ import annotations

import re

# C0 controls other than tab and line feed, DEL and C1 controls: a browser or terminal would act on them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Embeddings, overrides and isolates: they reorder the text around them, unseen. The marks of single letters stay.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
MOST_CHARACTERS = 20_000
"""The longest text that is shown whole: some ten pages of print, and no more than the cell of a spreadsheet holds."""


def cleaned(text: str) -> str:
    """Return a text so that any file can hold it and a reader sees all that is in it.

    Half surrogate pairs and control characters are replaced. Characters that change the order in which a line is read
    are written out: where an output hides one, a reader is to know.

    >>> cleaned("a\\x00b\\ud800c\\r\\nd"), cleaned("safe\\u202etxt.exe")
    ('a\\ufffdb?c\\nd', 'safe[U+202E]txt.exe')
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _REORDERING.sub(lambda found: f"[U+{ord(found[0]):04X}]", _CONTROLS.sub("\ufffd", text))
    return text.encode("utf-8", "replace").decode("utf-8")


def shown(text: str, *, most: int = MOST_CHARACTERS) -> str:
    """Return a text as a report shows it: `cleaned`, and cut where it is endless, with a word on how long it is.

    >>> shown("abcdef", most=4)
    'abcd … [cut here: 6 characters in all]'
    """
    written = cleaned(text[: most + 1])
    if len(written) <= most:
        return written
    return f"{written[:most]} … [cut here: {len(text):,} characters in all]"
