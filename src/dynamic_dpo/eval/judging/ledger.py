"""The file of a judge's answers: what is in it is never asked, or paid, again.

Two files of JSON lines grow side by side: the answers, and the invalid replies that led to another attempt.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Self, cast

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.judging.questions import RecordT
from dynamic_dpo.eval.judging.spending import Spending
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.utils.json_lines import JsonLinesFile, read_json_lines


@dataclass(frozen=True)
class InvalidReply:
    """A paid reply without a valid verdict, after which the question was asked again.

    Attributes:
        key: The question's key.
        attempt: Which attempt it was, from 0.
        reply: The judge's words.
        prompt_tokens: Tokens of the question.
        completion_tokens: Tokens of the reply.
        cost: Money by the price table.
    """

    key: str
    attempt: int
    reply: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class JudgeLedger(Generic[RecordT]):
    """Answers by their key, on the disk before `append` returns; several threads may use one.

    Args:
        path: The file of answers, such as ``judgements.jsonl``; the invalid replies go beside it, to
            ``judgements.attempts.jsonl``. A torn last line is moved to ``PATH.torn``.
        record: What its answers are.

    Raises:
        DataError: If another process has the file open, or a line is damaged in a way no crash explains.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "judgements.jsonl"
        >>> with JudgeLedger(path) as ledger:
        ...     ledger.append(JudgementRecord("k", "p", 0, "judge", "x", "y", "A"))
        ...     ledger.append(JudgementRecord("k", "p", 0, "judge", "x", "y", "B"))
        >>> [record.verdict for record in read_ledger(path)]
        ['A']
    """

    def __init__(self, path: str | Path, record: type[RecordT] | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._answers_file = JsonLinesFile(self.path)
        try:
            self._invalid_file = JsonLinesFile(attempts_path(self.path))
        except BaseException:
            self._answers_file.close()
            raise
        try:
            self._answers = _by_key(self._answers_file.rows, self.path, _kind(record))
            self._invalid: dict[str, dict[int, InvalidReply]] = {}
            for row in self._invalid_file.rows:
                self._remember(_invalid_reply(row, self._invalid_file.path))
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> RecordT | None:
        """Return the answer to a question, ``None`` where there is none yet."""
        with self._lock:
            return self._answers.get(key)

    def invalid_replies(self, key: str) -> list[InvalidReply]:
        """Return the invalid replies that a question has had, in their order."""
        with self._lock:
            attempts = self._invalid.get(key, {})
            return [attempts[number] for number in sorted(attempts)]

    def append(self, record: RecordT) -> None:
        """Write an answer and wait until the disk has it; of two with one key the first counts."""
        with self._lock:
            if record.key in self._answers:
                return
        self._answers_file.append(record.to_json())
        with self._lock:
            self._answers.setdefault(record.key, record)

    def append_invalid(self, reply: InvalidReply) -> None:
        """Write an invalid reply and wait until the disk has it."""
        self._invalid_file.append(asdict(reply))
        with self._lock:
            self._remember(reply)

    def replies(self) -> list[Spending]:
        """Return what each question has cost so far, in the order of keys."""
        with self._lock:
            costs = {
                key: Spending(a.attempts, a.prompt_tokens, a.completion_tokens, a.cost)
                for key, a in self._answers.items()
            }
            for key, attempts in self._invalid.items():
                # An answer counts its invalid replies in.
                if key not in costs:
                    costs[key] = Spending(
                        len(attempts),
                        sum(reply.prompt_tokens for reply in attempts.values()),
                        sum(reply.completion_tokens for reply in attempts.values()),
                        math.fsum(reply.cost for reply in attempts.values()),
                    )
        return [costs[key] for key in sorted(costs)]

    def spent(self) -> Spending:
        """Return what all replies in the file have cost, the same for every order of its lines."""
        return total(self.replies())

    def close(self) -> None:
        """Give the files and their locks back."""
        self._answers_file.close()
        self._invalid_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _remember(self, reply: InvalidReply) -> None:
        self._invalid.setdefault(reply.key, {}).setdefault(reply.attempt, reply)


def attempts_path(path: str | Path) -> Path:
    """Return where the invalid replies of a file of answers are.

    >>> attempts_path("judgements.jsonl").name
    'judgements.attempts.jsonl'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.attempts{path.suffix}")


def read_ledger(path: str | Path, record: type[RecordT] | None = None) -> list[RecordT]:
    """Return the answers of a file without locking or changing it, the first of each key.

    Args:
        path: The file.
        record: What its answers are.

    Raises:
        DataError: If the file cannot be read or a line before the last is damaged.
    """
    return list(_by_key(read_json_lines(path), Path(path), _kind(record)).values())


def total(spendings: Iterable[Spending]) -> Spending:
    """Return a sum whose money does not depend on the order.

    >>> total([Spending(1, 5, 1, 0.1)] * 10).cost
    1.0
    """
    rows = list(spendings)
    calls, prompt_tokens, completion_tokens = (sum(row[column] for row in rows) for column in range(3))
    return Spending(
        int(calls), int(prompt_tokens), int(completion_tokens), math.fsum(row.cost for row in rows)
    )


def _kind(record: type[RecordT] | None) -> type[RecordT]:
    return cast("type[RecordT]", JudgementRecord) if record is None else record


def _by_key(rows: Iterable[dict[str, Any]], path: Path, kind: type[RecordT]) -> dict[str, RecordT]:
    answers: dict[str, RecordT] = {}
    for number, row in enumerate(rows, start=1):
        try:
            record = cast("RecordT", kind.from_json(row))
        except DataError as error:
            raise DataError(f"{path}, record {number}: {error}") from None
        answers.setdefault(record.key, record)
    return answers


def _invalid_reply(row: dict[str, Any], path: Path) -> InvalidReply:
    try:
        return InvalidReply(**row)
    except TypeError as error:
        raise DataError(f"{path} holds a line that is no invalid reply: {error}") from None
