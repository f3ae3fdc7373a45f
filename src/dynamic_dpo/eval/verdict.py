"""Reading a judge's reply: A, B, a tie, or invalid, and never one for the other.

Only a verdict in the form that was asked for counts: the last line, ``Verdict: A``, or a JSON object with
the key ``verdict``, or a reply that is the bare label. A letter or a "tie" somewhere in the reasons is no
verdict. How the reply was obtained, and what an invalid one leads to, is not known here.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum


class Verdict(StrEnum):
    """What a judge decided between outputs A and B."""

    A = "A"
    B = "B"
    TIE = "tie"
    INVALID = "invalid"

    def swapped(self) -> Verdict:
        """Return the same decision where A and B have changed places.

        >>> Verdict.A.swapped(), Verdict.TIE.swapped()
        (<Verdict.B: 'B'>, <Verdict.TIE: 'tie'>)
        """
        return {Verdict.A: Verdict.B, Verdict.B: Verdict.A}.get(self, self)


# Markdown and quotation marks around a verdict are taste, not content.
_MARKS = "[*_`#>\"'\\s]*"
_LABEL = (
    r"(?:(?:the\s+)?(?:response|output|answer|assistant|summary|option)\s+)?"
    rf"{_MARKS}(?:\[\[?)?(?P<label>A|B|tie)(?:\]\]?)?"
)
_VERDICT_LINE = re.compile(
    rf"{_MARKS}(?:(?:my|the)\s+)?(?:final\s+)?verdict{_MARKS}(?:[:=\-–—]|is\b){_MARKS}{_LABEL}{_MARKS}\.?{_MARKS}",
    re.IGNORECASE,
)
_BARE_LABEL = re.compile(rf"{_MARKS}{_LABEL}{_MARKS}\.?{_MARKS}", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.IGNORECASE | re.DOTALL)


def parse_verdict(reply: str | None) -> Verdict:
    """Read the verdict of one reply.

    Args:
        reply: The judge's whole reply; ``None`` where it gave none.

    Returns:
        The verdict; `Verdict.INVALID` where there is none in the form asked for, where it is not the end of
        the reply (as after a truncation), or where two verdicts differ.

    Example:
        >>> parse_verdict("A is warmer, although a tie would be defensible.\\n\\nVerdict: A")
        <Verdict.A: 'A'>
        >>> parse_verdict("A good answer needs a source; it is nearly a tie.")
        <Verdict.INVALID: 'invalid'>
    """
    text = (reply or "").strip()
    if not text:
        return Verdict.INVALID
    as_object = _json_object(text)
    if as_object is not None:
        return _verdict(as_object.get("verdict"))
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and (bare := _BARE_LABEL.fullmatch(lines[0])):
        return _verdict(bare["label"])
    found = [_VERDICT_LINE.fullmatch(line) for line in lines]
    final = found[-1]
    if final is None:
        return Verdict.INVALID
    verdicts = {_verdict(match["label"]) for match in found if match}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.INVALID


def _verdict(label: object) -> Verdict:
    """Return the verdict of one label as written, `Verdict.INVALID` for any other value."""
    if not isinstance(label, str):
        return Verdict.INVALID
    by_label = {"a": Verdict.A, "b": Verdict.B, "tie": Verdict.TIE}
    return by_label.get(label.strip().lower(), Verdict.INVALID)


def _json_object(text: str) -> dict[str, object] | None:
    """Return the reply as a JSON object, bare or as the fenced block it ends with."""
    fenced = list(_FENCE.finditer(text))
    body = fenced[-1][1] if fenced and fenced[-1].end() == len(text) else text
    try:
        value = json.loads(body)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
