"""Time spans in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Write a time span for a reader.

    >>> duration(42.4), duration(331), duration(7260)
    ('42 s', '5 min 31 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
