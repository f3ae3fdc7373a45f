"""Reading a verdict that is a label in double brackets, as the judges of Arena-Hard and MT-Bench are asked for.

The label may stand anywhere in the reply, with words before and after it, and more than once; two labels that differ
are no verdict, whichever comes last. What Arena-Hard's own summary (``lmarena/arena-hard-auto``) reads is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from dynamic_dpo.eval.judges.verdict import Verdict, after_thoughts


class Label(NamedTuple):
    """What a label says.

    Attributes:
        verdict: Which output is better.
        strong: Whether much better, where labels tell that apart.
    """

    verdict: Verdict
    strong: bool = False


class LabelledReply(NamedTuple):
    """What a reply with a label says.

    Attributes:
        verdict: The verdict.
        strong: Whether the judge called the better one much better.
        reason: The judge's words before the label; the whole reply where the verdict is invalid.
    """

    verdict: Verdict
    strong: bool
    reason: str


FIVE_LABELS: Final[Mapping[str, Label]] = MappingProxyType(
    {
        "A>>B": Label(Verdict.A, strong=True),
        "A>B": Label(Verdict.A),
        "A=B": Label(Verdict.TIE),
        "B>A": Label(Verdict.B),
        "B>>A": Label(Verdict.B, strong=True),
        # The same five, written from the other side.
        "B<<A": Label(Verdict.A, strong=True),
        "B<A": Label(Verdict.A),
        "B=A": Label(Verdict.TIE),
        "A<B": Label(Verdict.B),
        "A<<B": Label(Verdict.B, strong=True),
    }
)
"""Arena-Hard's labels: from A much better to B much better."""

THREE_LABELS: Final[Mapping[str, Label]] = MappingProxyType(
    {"A": Label(Verdict.A), "B": Label(Verdict.B), "C": Label(Verdict.TIE)}
)
"""MT-Bench's labels of a comparison; C is a tie."""

# What looks like a label must be one of those asked for: "[[A]]" beside "[[A>B]]" is another label, not a word.
_DOUBLE = re.compile(r"\[\[[\s*_`]*([ABCabc][ABCabc<>=\s]{0,10}?)[\s*_`]*\]\]")
_SINGLE = re.compile(r"\[[\s*_`]*([ABab]\s*[<>=]{1,2}\s*[ABab])[\s*_`]*\]")


def read_label(reply: str | None, labels: Mapping[str, Label] = FIVE_LABELS) -> LabelledReply:
    """Read the label of one reply.

    Args:
        reply: The judge's whole reply; ``None`` where it gave none.
        labels: The labels that were asked for.

    Returns:
        What it says; `Verdict.INVALID` where there is no label, one that was not asked for, or two that differ.
        Labels in a thinking model's thoughts are drafts and do not count. Single brackets count only where there
        are no double ones.

    Example:
        >>> read_label("My final verdict is tie: [[A=B]]").verdict
        <Verdict.TIE: 'tie'>
        >>> read_label("B is far better.\\n\\n[[B>>A]]")
        LabelledReply(verdict=<Verdict.B: 'B'>, strong=True, reason='B is far better.')
        >>> read_label("First [[A>B]], and then again [[B>A]].").verdict
        <Verdict.INVALID: 'invalid'>
    """
    text = reply or ""
    invalid = LabelledReply(Verdict.INVALID, False, text.strip())
    start = after_thoughts(text)
    if start is None:
        return invalid
    found = list(_DOUBLE.finditer(text, start)) or list(_SINGLE.finditer(text, start))
    meant = {labels.get(re.sub(r"\s+", "", match[1]).upper()) for match in found}
    label = meant.pop() if len(meant) == 1 else None
    if label is None:
        return invalid
    return LabelledReply(label.verdict, label.strong, text[start : found[0].start()].strip())
