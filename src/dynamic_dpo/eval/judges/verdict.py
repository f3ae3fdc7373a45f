"""Reading a judge's reply: A, B, a tie, or invalid, and never one for the other.

Only a verdict in the form that was asked for counts, and only at the end of the reply: a line ``Verdict: A``, a
line ``[[A]]``, a JSON object with the key ``verdict``, or a reply that is the bare label. A letter or a "tie"
somewhere in the reasons is no verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple


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


class ReadReply(NamedTuple):
    """What a reply says.

    Attributes:
        verdict: The verdict.
        reason: The judge's words before it, without a thinking model's thoughts; the whole reply where the verdict
            is invalid.
        label_at: Where in the reply the verdict's first letter stands; ``None`` where it is invalid.
    """

    verdict: Verdict
    reason: str
    label_at: int | None = None


# Markdown and quotation marks around a verdict are taste, not content.
_MARKS = "[*_`#>\"'“”‘’\\s]*"
_NOUN = r"(?:response|reply|answer|output|assistant|summary|option|completion|candidate|model|text)"
_WINS = rf"(?:\s+(?:wins|is\s+(?:the\s+)?(?:better|best|winner)(?:\s+(?:one|{_NOUN}))?))?"
_COMPARED = r"[AB]\s*(?:>{1,3}|<{1,3}|={1,2})\s*[AB]"
_EVEN = r"(?:it(?:['’]s|\s+is)\s+)?(?:a\s+)?(?:tie|tied|draw)"


def _label(words: str, marks: str = _MARKS) -> str:
    return rf"(?:(?:the\s+)?{_NOUN}\s+)?{marks}[\[(]{{0,2}}(?P<label>{_COMPARED}|{words}|[AB])[\])]{{0,2}}{marks}"


_END = rf"{_MARKS}[.!。]?{_MARKS}"
_WORD = (
    r"(?:(?:so|thus|therefore|hence|overall)\s*,?\s+)?(?:(?:my|the)\s+)?(?:(?:final|overall)\s+)?verdict"
    rf"{_MARKS}(?:(?:is{_MARKS})?[:：=\-–—]|is\b)"
)
_VERDICT_LINE = re.compile(
    rf"(?:[-•]\s+|\d+[.)]\s+)?{_MARKS}{_WORD}{_MARKS}{_label(_EVEN)}{_WINS}{_END}", re.IGNORECASE
)
# At the end of a line of reasons a verdict is its own sentence, and not the end of something quoted.
_VERDICT_SENTENCE = re.compile(
    rf"(?<=[.!?。…])[)\]*_]*\s+[*_]*{_WORD}[*_\s]*{_label(_EVEN, '[*_]*')}{_WINS}[*_]*[.!。]?[*_]*\Z",
    re.IGNORECASE,
)
_HEADING = re.compile(rf"{_MARKS}(?:(?:my|the)\s+)?(?:final\s+)?verdict{_MARKS}[:：]?{_MARKS}", re.IGNORECASE)
_LABEL_ALONE = re.compile(rf"{_MARKS}{_label(_EVEN)}{_WINS}{_END}", re.IGNORECASE)
# A whole reply without the word "verdict" must be no sentence either: "It is a tie." may be half of one.
_WHOLE_REPLY = re.compile(rf"{_MARKS}{_label('tie')}{_END}", re.IGNORECASE)
_BRACKETED = re.compile(
    rf"{_MARKS}\[\[{_MARKS}(?P<label>A|B|tie|[AB]\s*[<>=]+\s*[AB]){_MARKS}\]\]{_END}", re.IGNORECASE
)
# Fences and rules carry no words; what they enclose counts as if they were not there.
_NO_WORDS = re.compile(r"[\s*_`#>~=\-]*|```\w*")
_OBJECT_START = re.compile(r"^[ \t>*`]{0,50}(?:json)?[ \t]{0,50}(\{)", re.IGNORECASE | re.MULTILINE)
_JSON_LABEL = re.compile(r'"\s*verdict\s*"\s*:\s*"', re.IGNORECASE)
_THOUGHTS = re.compile(r"\s*<(think|thinking|reasoning)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_OPEN_THOUGHTS = re.compile(r"\s*<(?:think|thinking|reasoning)>", re.IGNORECASE)
# Longer lines are reasons: a verdict needs no room, and patterns with many optional parts need bounds.
_LONGEST_VERDICT = 100


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
    return read_reply(reply).verdict


def read_reply(reply: str | None) -> ReadReply:
    """Read verdict and reasons of one reply.

    Args:
        reply: As for `parse_verdict`.

    Returns:
        The verdict, the words before it, and where it stands.

    Example:
        >>> read_reply('{"reason": "B is kinder.", "verdict": "B"}')
        ReadReply(verdict=<Verdict.B: 'B'>, reason='B is kinder.', label_at=39)
    """
    text = reply or ""
    invalid = ReadReply(Verdict.INVALID, text.strip())
    start = after_thoughts(text)
    if start is None:
        return invalid  # Cut off while thinking: what looks like a verdict is a draft.
    parts = list(_parts(text, start))
    claims = [part for part in parts if part.verdict is not None]
    if not parts or parts[-1].verdict is None or len({claim.verdict for claim in claims}) > 1:
        return invalid
    final = parts[-1]
    assert final.verdict is not None
    reason = final.reason if final.reason is not None else text[start : claims[0].start]
    return ReadReply(final.verdict, reason.strip(), final.label_at)


def after_thoughts(reply: str) -> int | None:
    """Return where a reply begins after a thinking model's thoughts; ``None`` where they do not end.

    >>> after_thoughts("<think>B?</think>A."), after_thoughts("A."), after_thoughts("<think>B?")
    (17, 0, None)
    """
    thoughts = _THOUGHTS.match(reply)
    start = thoughts.end() if thoughts else 0
    return None if _OPEN_THOUGHTS.match(reply, start) else start


class _Part(NamedTuple):
    """A line with words, or a JSON object; with a verdict where it states one."""

    start: int
    verdict: Verdict | None = None
    label_at: int | None = None
    reason: str | None = None


def _parts(text: str, start: int) -> Iterator[_Part]:
    for found in _OBJECT_START.finditer(text, start):
        if found.start(1) < start:
            continue  # inside the object before
        decoded = _decode(text, found.start(1))
        if decoded is not None:
            yield from _line_parts(_lines(text, start, found.start(1)), alone=False)
            value, end = decoded
            yield _object_part(text, value, found.start(1), end)
            start = end
    lines = _lines(text, start, len(text))
    yield from _line_parts(lines, alone=start == 0 or not text[:start].strip())


def _lines(text: str, start: int, end: int) -> list[tuple[int, str]]:
    lines = []
    for line in text[start:end].splitlines(keepends=True):
        if not _NO_WORDS.fullmatch(line.strip()) and line.strip().lower() != "json":
            lines.append((start, line.rstrip()))
        start += len(line)
    return lines


def _line_parts(lines: list[tuple[int, str]], *, alone: bool) -> Iterator[_Part]:
    for number, (start, line) in enumerate(lines):
        found: re.Match[str] | None = None
        tail = max(0, len(line) - _LONGEST_VERDICT)
        if not tail:
            found = _VERDICT_LINE.fullmatch(line) or _BRACKETED.fullmatch(line)
            after_heading = number > 0 and _HEADING.fullmatch(lines[number - 1][1][:_LONGEST_VERDICT])
            if found is None and after_heading:
                found = _LABEL_ALONE.fullmatch(line)
            elif found is None and alone and len(lines) == 1:
                found = _WHOLE_REPLY.fullmatch(line)
        found = found or _VERDICT_SENTENCE.search(line, tail)
        verdict = _verdict(found["label"]) if found else None
        if found is None or verdict is None:
            yield _Part(start)
        else:
            # The sentence's start, or the line's, is where the reasons end.
            yield _Part(start + found.start(), verdict, start + found.start("label"))


def _object_part(text: str, value: dict[str, Any], start: int, end: int) -> _Part:
    label = value.get("verdict")
    found = (
        _LABEL_ALONE.fullmatch(label) if isinstance(label, str) and len(label) <= _LONGEST_VERDICT else None
    )
    if found is None:
        return _Part(start)
    reasons = [value[key] for key in ("reason", "reasons", "reasoning", "explanation") if key in value]
    reason = reasons[0] if reasons and isinstance(reasons[0], str) else None
    places = list(_JSON_LABEL.finditer(text, start, end))
    label_at = places[-1].end() + found.start("label") if places else None
    return _Part(start, _verdict(found["label"]), label_at, reason)


def _verdict(label: str) -> Verdict | None:
    """Return the verdict of a label that the patterns above have found, ``None`` for "A > A"."""
    compact = re.sub(r"\s+", "", label).upper()
    if compact in ("A", "B"):
        return Verdict(compact)
    if compact[0] in "AB" and compact[-1] in "AB":
        left, sign, right = compact[0], compact[1], compact[-1]
        if left == right:
            return None
        return Verdict.TIE if sign == "=" else Verdict(left if sign == ">" else right)
    return Verdict.TIE


def _decode(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """Return the JSON object that begins here and its end; keys in lower case."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value, end


def _without_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    verdicts = [value for key, value in pairs if key.strip().lower() == "verdict"]
    value = {key.strip().lower(): item for key, item in pairs}
    return value | {"verdict": None} if any(item != verdicts[0] for item in verdicts) else value


# Not strict: judges write line breaks into their strings.
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_without_contradiction)
