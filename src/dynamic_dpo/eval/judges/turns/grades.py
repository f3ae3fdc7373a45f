"""Reading a grade: one number from 1 to 10 in double brackets, as MT-Bench's judge is asked for."""

from __future__ import annotations

import re
from typing import NamedTuple

from dynamic_dpo.eval.judges.verdict import after_thoughts

LOWEST, HIGHEST = 1.0, 10.0
_DOUBLE = re.compile(r"\[\[[\s*_]*(-?\d{1,6}(?:\.\d{1,6})?)[\s*_]*(?:/\s*10[\s*_]*)?\]\]")
# Judges forget a bracket; a number in single ones elsewhere is a reference or an index.
_SINGLE = re.compile(
    r"\b(?:rating|grade|score)[\s*_]*[:：][\s*_]*\[\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*\]", re.IGNORECASE
)


class GradedReply(NamedTuple):
    """What a reply says.

    Attributes:
        grade: From 1 to 10; ``None`` where it holds no grade.
        reason: The judge's words before it; the whole reply where there is none.
    """

    grade: float | None
    reason: str


def read_grade(reply: str | None) -> GradedReply:
    """Read the grade of one reply.

    Args:
        reply: The judge's whole reply; ``None`` where it gave none.

    Returns:
        The grade; ``None`` where there is none, one outside 1 to 10, or several that differ. Grades in a thinking
        model's thoughts are drafts and do not count.

    Example:
        >>> read_grade("It is right but short.\\n\\nRating: [[7]]")
        GradedReply(grade=7.0, reason='It is right but short.\\n\\nRating:')
        >>> read_grade("Rating: [[11]]").grade is None
        True
    """
    text = reply or ""
    start = after_thoughts(text)
    if start is None:
        return GradedReply(None, text.strip())
    found = list(_DOUBLE.finditer(text, start)) or list(_SINGLE.finditer(text, start))
    grades = {float(match[1]) for match in found}
    grade = grades.pop() if len(grades) == 1 else None
    if grade is None or not LOWEST <= grade <= HIGHEST:
        return GradedReply(None, text.strip())
    return GradedReply(grade, text[start : found[0].start()].strip())
