"""Which text shows nothing: blanks, and characters that are drawn as nothing at all."""

from __future__ import annotations

import re
from typing import Final

# Controls, what Unicode 16 lists as Default_Ignorable_Code_Point (zero widths, directions, the byte order mark, soft
# hyphens, fillers, variation selectors, tags), annotation marks, and the Braille pattern without dots.
_INVISIBLE: Final = (
    "\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u202a-\\u202e"
    "\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\U0001bca0-\\U0001bca3"
    "\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff"
)
_VISIBLE: Final = re.compile(rf"[^\s{_INVISIBLE}]")


def is_blank(text: str) -> bool:
    r"""Tell whether nothing of a text can be seen.

    Example:
        >>> is_blank(" \n\u200b\ufeff"), is_blank("\u200bHi")
        (True, False)
    """
    return _VISIBLE.search(text) is None
