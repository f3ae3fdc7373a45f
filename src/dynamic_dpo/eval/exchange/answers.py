"""Models' answers in the files of Arena-Hard and MT-Bench: JSON lines, found by the questions' own identifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange.files import as_object, entries_of_lines, string_field
from dynamic_dpo.eval.records import PromptRecord

_IDS = ("uid", "question_id")


class ImportedAnswers(NamedTuple):
    """The answers of one model.

    Attributes:
        model: Its name in the file.
        turns: Question's identifier to the answers to its turns, in their order.
    """

    model: str
    turns: dict[str, list[str]]


def import_answers(path: str | Path) -> ImportedAnswers:
    """Read a file of ``model_answer/``: Arena-Hard 2.0's, version 0.1's, or MT-Bench's.

    Args:
        path: The file of JSON lines. Of several choices the first counts, of several lines about one question too.

    Raises:
        DataError: If the file is malformed, or holds answers of several models.
    """
    turns: dict[str, list[str]] = {}
    names: set[str] = set()
    for place, line in entries_of_lines(Path(path)):
        id_field = next((name for name in _IDS if line.get(name) is not None), None)
        if id_field is None:
            raise DataError(f"{place} has neither 'uid' nor 'question_id', by which its question is found")
        names.add(string_field(line, "model" if "messages" in line else "model_id", place))
        turns.setdefault(str(line[id_field]), _answers(line, place))
    if len(names) != 1:
        raise DataError(
            f"{path} holds answers of {len(names)} models ({', '.join(sorted(names))}): give one file a model"
        )
    return ImportedAnswers(names.pop(), turns)


def answers_to_prompt(answers: ImportedAnswers, prompt: PromptRecord) -> list[str] | None:
    """Return a model's answers to the turns of a prompt; ``None`` where the file has none."""
    ids = (str(prompt.meta[name]) for name in _IDS if prompt.meta.get(name) is not None)
    return next((answers.turns[id_] for id_ in ids if id_ in answers.turns), None)


def _answers(line: Mapping[str, Any], place: str) -> list[str]:
    if "messages" in line:
        given: Any = [
            as_object(message, f"{place}, messages").get("content")
            for message in _list(line["messages"], f"{place}, messages")
            if as_object(message, f"{place}, messages").get("role") == "assistant"
        ]
    else:
        choice = _list(line.get("choices"), f"{place}, choices")[0]
        given = _list(as_object(choice, f"{place}, choices").get("turns"), f"{place}, turns")
    texts = [_text(answer) for answer in given]
    if not texts or any(text is None for text in texts):
        raise DataError(f"{place}: its answers must be texts, got {str(given)[:80]!r}")
    return [text for text in texts if text is not None]


def _text(answer: Any) -> str | None:
    # Version 2.0 wraps the answer beside its metadata, version 0.1 beside its length.
    while isinstance(answer, Mapping):
        answer = answer.get("answer", answer.get("content"))
    return answer if isinstance(answer, str) else None


def _list(value: Any, place: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place} must be a list that is not empty, got {str(value)[:80]!r}")
    return value
