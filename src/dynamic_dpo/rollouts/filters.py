"""What is left out of the pairs, and why: answers that nobody should learn from, pairs that teach nothing.

A filter is a function and a line in a table; its name there is the reason that is counted and listed. Answers are
filtered before they are labelled, so that no judge is paid for one that is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.settings import AnswerFilters, PairingSettings

_SHINGLE: Final = 3


class Dropped(NamedTuple):
    """Something that is in no pair.

    Attributes:
        id: The prompt's id.
        reason: Name of the filter, or of what was lacking.
        answers: Names of the answers that it is about; empty where it is about the prompt.
        detail: What else is to be said.
    """

    id: str
    reason: str
    answers: tuple[str, ...] = ()
    detail: str = ""


class Usable(NamedTuple):
    """A prompt's answers, parted.

    Attributes:
        answers: Those that may stand in a pair, in their order.
        dropped: The others.
    """

    answers: list[Answer]
    dropped: list[Dropped]


# ---- answers ----


def _is_empty(answer: Answer, earlier: Sequence[Answer], filters: AnswerFilters) -> bool:
    return not answer.text.strip()


def _is_no_text(answer: Answer, earlier: Sequence[Answer], filters: AnswerFilters) -> bool:
    # Half a surrogate pair, which a server may send: no tokenizer takes it.
    return any("\ud800" <= character <= "\udfff" for character in answer.text)


def _is_truncated(answer: Answer, earlier: Sequence[Answer], filters: AnswerFilters) -> bool:
    return filters.truncated and not answer.finished


def _is_refusal(answer: Answer, earlier: Sequence[Answer], filters: AnswerFilters) -> bool:
    return any(re.search(pattern, answer.text, re.IGNORECASE) for pattern in filters.refusals)


def _is_identical(answer: Answer, earlier: Sequence[Answer], filters: AnswerFilters) -> bool:
    text = normalised(answer.text)
    return any(normalised(other.text) == text for other in earlier if other.model == answer.model)


ANSWER_FILTERS: Final[dict[str, Callable[[Answer, Sequence[Answer], AnswerFilters], bool]]] = {
    "empty": _is_empty,
    "not_text": _is_no_text,
    "truncated": _is_truncated,
    "refusal": _is_refusal,
    "identical": _is_identical,
}
"""Reason to whether an answer is left out, given those before it that are not; asked in this order."""


def usable_answers(prompt_id: str, answers: Sequence[Answer], filters: AnswerFilters) -> Usable:
    """Part a prompt's answers; of several identical ones of a writer the first stays.

    Example:
        >>> answers = [Answer("policy", n, text) for n, text in enumerate(["Yes.", " ", "yes. "])]
        >>> found = usable_answers("p", answers, AnswerFilters())
        >>> [answer.sample for answer in found.answers], [(d.reason, d.answers) for d in found.dropped]
        ([0], [('empty', ('policy#1',)), ('identical', ('policy#2',))])
    """
    found = Usable([], [])
    for answer in answers:
        reason = next(
            (name for name, applies in ANSWER_FILTERS.items() if applies(answer, found.answers, filters)),
            None,
        )
        if reason is None:
            found.answers.append(answer)
        else:
            found.dropped.append(Dropped(prompt_id, reason, (answer.name,)))
    return found


# ---- pairs ----


def _are_identical(chosen: Answer, rejected: Answer, settings: PairingSettings) -> bool:
    return normalised(chosen.text) == normalised(rejected.text)


def _is_tie(chosen: Answer, rejected: Answer, settings: PairingSettings) -> bool:
    return not chosen.score > rejected.score


def _gap_is_too_small(chosen: Answer, rejected: Answer, settings: PairingSettings) -> bool:
    return chosen.score - rejected.score < settings.min_gap


def _are_near_identical(chosen: Answer, rejected: Answer, settings: PairingSettings) -> bool:
    limit = settings.near_identical
    return limit is not None and similarity(chosen.text, rejected.text) >= limit


def _lengths_differ(chosen: Answer, rejected: Answer, settings: PairingSettings) -> bool:
    return not lengths_match(chosen, rejected, settings.max_length_ratio)


PAIR_FILTERS: Final[dict[str, Callable[[Answer, Answer, PairingSettings], bool]]] = {
    "identical_pair": _are_identical,
    "tie": _is_tie,
    "gap_too_small": _gap_is_too_small,
    "near_identical": _are_near_identical,
    "length_mismatch": _lengths_differ,
}
"""Reason to whether a pair of chosen and rejected is left out; asked in this order."""


def pair_fault(chosen: Answer, rejected: Answer, settings: PairingSettings) -> str | None:
    """Return why a pair is left out, ``None`` if it is not."""
    return next((name for name, applies in PAIR_FILTERS.items() if applies(chosen, rejected, settings)), None)


def lengths_match(one: Answer, other: Answer, max_ratio: float | None) -> bool:
    """Return whether the longer answer has at most ``max_ratio`` times the characters of the shorter one."""
    shorter, longer = sorted((len(one.text), len(other.text)))
    return max_ratio is None or longer <= max_ratio * shorter


# ---- texts ----


def normalised(text: str) -> str:
    r"""Return a text without what makes no difference to a reader: case, white space, forms of one character.

    >>> normalised("  Voil\u00e0,\n it is. ") == normalised("voila\u0300, IT is.")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def similarity(one: str, other: str) -> float:
    """Return how many word triples two texts have in common, of all that they have (Jaccard), in [0, 1].

    A text of fewer than three words counts as one unit.

    >>> similarity("a b c d", "A b  c e")  # a b c; b c d; b c e
    0.3333333333333333
    """
    left, right = _shingles(one), _shingles(other)
    return len(left & right) / len(left | right)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[n : n + _SHINGLE]) for n in range(max(1, len(words) - _SHINGLE + 1))}


def read_patterns(path: str | Path) -> tuple[str, ...]:
    """Read regular expressions, one a line; empty lines and lines that begin with ``#`` say nothing.

    Raises:
        DataError: If the file cannot be read, or holds no expression.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the patterns of refusals {str(path)!r} cannot be read: {error}") from None
    patterns = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not patterns:
        raise DataError(f"{str(path)!r} holds no pattern of a refusal: write one regular expression a line")
    return patterns
