"""How sure a judge was: the probabilities of its verdict's token.

Reads the alternatives that a server gives for the token at which the verdict stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dynamic_dpo.eval.judges.chat.server import Token
from dynamic_dpo.eval.judges.verdict import ReadReply, Verdict

_LETTERS = re.compile(r"[A-Za-z]+")
_NO_LETTERS = re.compile(r"[^A-Za-z]*")
# A token may hold a part of a word.
_TIES = ("tie", "tied", "draw")


def verdict_probabilities(
    text: str, tokens: Sequence[Token] | None, reading: ReadReply
) -> dict[Verdict, float] | None:
    """Return the probabilities of A, B and a tie where the verdict was written.

    They are those of the alternatives that begin such a verdict, scaled to a sum of 1; a verdict that is not among
    the alternatives counts as impossible.

    Args:
        text: The reply.
        tokens: Its tokens; ``None`` where the server gave none.
        reading: What the reply says.

    Returns:
        The probabilities, or ``None`` where they cannot be had: no tokens, no verdict, tokens that do not spell the
        reply, or a verdict such as "A < B" whose first letter does not decide.

    Example:
        >>> tokens = [Token("Verdict:", ()), Token(" A", ((" A", math.log(0.6)), (" B", math.log(0.2))))]
        >>> found = verdict_probabilities("Verdict: A", tokens, ReadReply(Verdict.A, "", 9))
        >>> round(found[Verdict.A], 3), found[Verdict.TIE]
        (0.75, 0.0)
    """
    if not tokens or reading.label_at is None:
        return None
    spelled = "".join(token.text for token in tokens)
    # Servers may strip blanks off the reply and not off its tokens.
    shift = spelled.find(text) if text else -1
    if shift < 0 or _verdict_of(text[reading.label_at :]) is not reading.verdict:
        return None
    place = shift + reading.label_at
    start = 0
    for token in tokens:
        if place < start + len(token.text):
            break
        start += len(token.text)
    before = token.text[: place - start]
    shares = dict.fromkeys((Verdict.A, Verdict.B, Verdict.TIE), 0.0)
    for other, logprob in token.alternatives:
        # " A" and "A" are the same verdict; where the token begins with a word, its rivals begin with it too.
        if _LETTERS.search(before):
            other = other[len(before) :] if other.startswith(before) else ""
        verdict = _verdict_of(_NO_LETTERS.sub("", other, count=1))
        if verdict is not None:
            shares[verdict] += math.exp(min(logprob, 0.0))
    total = sum(shares.values())
    return {verdict: share / total for verdict, share in shares.items()} if total > 0 else None


def _verdict_of(text: str) -> Verdict | None:
    """Return the verdict that a text begins with, a part of "tie" included; ``None`` for any other word."""
    found = _LETTERS.match(text)
    word = found[0].lower() if found else ""
    if word in ("a", "b"):
        # "A < B" says the contrary of its letter.
        return None if re.match(r"\s*[<>=]", text[1:]) else Verdict(word.upper())
    return Verdict.TIE if word and any(tie.startswith(word) for tie in _TIES) else None
