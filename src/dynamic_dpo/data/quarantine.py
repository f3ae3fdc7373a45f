"""Rows that cannot be used: counted by reason, listed in a file, and an error above a set share.

Nothing is dropped in silence: a row is either kept or stands here with its number and one of the reasons below.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.secrets import redact

# Every reason there is. docs/data.md lists the same table; a test keeps the two together.
REASONS: Final = {
    "not_json": "the line is not valid JSON in UTF-8",
    "not_an_object": "the row is JSON, but not an object with named fields",
    "missing_field": "a field that this kind of row needs is absent or null",
    "not_text": "a field that must be text is something else, or holds characters that are not Unicode text",
    "bad_message": "a message is not an object with a role and a text content",
    "has_images": "the row has images, sound or video, and pairs are trained on as text alone",
    "bad_token_ids": "a token field is not a list of non-negative integers, or a mask does not fit its answer",
    "no_assistant_turn": "an HH transcript has no assistant turn",
    "no_common_prompt": "chosen and rejected do not begin with the same prompt",
    "answer_not_assistant": "an answer in messages does not begin with an assistant message",
    "nothing_to_answer": "the conversation does not end with a turn that the assistant is to answer",
    "empty_prompt": "the prompt is blank or has no tokens",
    "empty_chosen": "the chosen answer is blank",
    "empty_rejected": "the rejected answer is blank",
    "identical_answers": "chosen and rejected are the same",
    "template_error": "the chat template refused the conversation",
    "template_not_prefix": "the rendered conversation does not begin with the rendered prompt",
    "turns_not_found": "the chat template does not show which turns of a longer answer are the assistant's",
    "prompt_fills_max_length": "the prompt leaves no room for an answer",
    "identical_after_truncation": "chosen and rejected became the same by truncation",
    "tie": "the row says that its answers are equally good",
    "no_verdict": "the row has several answers, and does not say which is the better one",
    "needs_template": "the row has a system text, tools or template arguments, and nothing has a place for it here",
    "template_without_field": "the row has tools, tool calls or reasoning, which the chat template does not write",
    "bad_template_settings": "tools is no list of objects, or chat_template_kwargs no object",
    "two_systems": "the row has a system text, and its conversation begins with another one",
    "nothing_scored": "truncation left an answer no token that the assistant writes",
    "duplicate_id": "another row has the same id or the same content",
}

_EXCERPT_LENGTH: Final = 200
_MAX_SEARCHED_FOR_KEYS: Final = 1000


class BadRow(Exception):
    """Raised while one row is read; carries the reason and a few characters that show it."""

    def __init__(self, reason: str, shown: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.excerpt = excerpt(shown)


class Quarantined(NamedTuple):
    """One row that was set aside."""

    row: int
    reason: str
    excerpt: str


def excerpt(shown: object) -> str:
    """Return the beginning of a value as clean text of at most 200 characters.

    Example:
        >>> excerpt({"chosen": 5})
        "{'chosen': 5}"
    """
    try:
        text = shown if isinstance(shown, str) else repr(shown)
    except (ValueError, RecursionError):  # Whole numbers and nestings beyond what the interpreter prints.
        text = f"a {type(shown).__name__} that cannot be shown"
    # The list of bad rows is passed around; a key that stands in one is not for all who read it.
    text = redact(text[:_MAX_SEARCHED_FOR_KEYS])
    cut = text if len(text) <= _EXCERPT_LENGTH else text[: _EXCERPT_LENGTH - 1] + "…"
    # A lone surrogate may be the very fault: it must not break the report too.
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


class Quarantine:
    """The rows set aside so far.

    Args:
        source: The data set the row numbers refer to; named in reports.

    Attributes:
        unused: Columns and fields that rows of the set hold and nothing reads, each with the number of rows.
        shapes: Shapes that rows of the set had before they were read, each with the number of rows.

    Example:
        >>> quarantine = Quarantine("pairs.jsonl")
        >>> quarantine.add(7, "empty_chosen", "")
        >>> quarantine.counts()
        {'empty_chosen': 1}
        >>> print(quarantine.summary(total=100))
        1 of 100 rows of pairs.jsonl (1.0%) quarantined: empty_chosen 1
    """

    def __init__(self, source: str = "") -> None:
        self.source = source
        self.unused: Counter[str] = Counter()
        self.shapes: Counter[str] = Counter()
        self._entries: list[Quarantined] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Quarantined]:
        return iter(self._entries)

    def add(self, row: int, reason: str, shown: object) -> None:
        """Set a row aside under one of the known reasons."""
        assert reason in REASONS, reason
        self._entries.append(Quarantined(int(row), reason, excerpt(shown)))

    def counts(self) -> dict[str, int]:
        """Return the number of rows by reason, the most frequent first."""
        return dict(Counter(entry.reason for entry in self._entries).most_common())

    def summary(self, *, total: int) -> str:
        """Return one line: how many of ``total`` rows were set aside, and why."""
        share = len(self) / total if total else 0.0
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts().items())
        where = f" of {self.source}" if self.source else ""
        return f"{len(self)} of {total} rows{where} ({share:.1%}) quarantined" + (reasons and f": {reasons}")

    def write(self, path: str | os.PathLike[str], *, append: bool = False) -> Path:
        """Write one JSON object a row: ``source, row, reason, meaning, excerpt``.

        Args:
            path: The file. Folders above it are made.
            append: Add to the file instead of replacing it.

        Returns:
            The path written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            for entry in sorted(self._entries):
                record = {"source": self.source, **entry._asdict(), "meaning": REASONS[entry.reason]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return path

    def raise_if_above(
        self, max_share: float, total: int, *, path: str | os.PathLike[str] | None = None
    ) -> None:
        """Stop if too large a share of the rows was set aside.

        Args:
            max_share: Largest share accepted, in [0, 1].
            total: Rows that went in.
            path: Where the rows are listed, for the message.

        Raises:
            DataError: If the share is above ``max_share``, or if there were rows and none is left.
        """
        if not len(self) or (len(self) <= max_share * total and len(self) < total):
            return
        first = "; ".join(self._example(reason) for reason in list(self.counts())[:3])
        listed = f" All of them are listed in {path}." if path else ""
        if len(self) < total:
            remedy = (
                f"At most {max_share:.1%} is accepted: repair these rows, or raise quarantine_max_share if they "
                "may be left out"
            )
        else:
            remedy = "No row is left: is this the right file, in one of the formats of docs/data.md?"
        raise DataError(f"{self.summary(total=total)}. {first}.{listed} {remedy}")

    def _example(self, reason: str) -> str:
        entry = next(entry for entry in self._entries if entry.reason == reason)
        return f"{reason} means: {REASONS[reason]} (row {entry.row}: {entry.excerpt!r})"
