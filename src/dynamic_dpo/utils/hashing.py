"""Names that follow from content: equal values, whatever the order of their keys, have equal names."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_hash(value: Any, *, length: int = 32) -> str:
    """Return the first ``length`` hexadecimal digits of the SHA-256 of a JSON value.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]
