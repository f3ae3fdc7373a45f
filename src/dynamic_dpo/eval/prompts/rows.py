"""One row, read as one prompt of an evaluation, in any of the shapes in which prompts are published.

Knows HH transcripts, TL;DR posts, conversations, AlpacaEval- and Arena-Hard-style objects and plain texts, and raises
``BadRow`` for what is none of them. Pure functions on plain objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dynamic_dpo.data import hh_text, pairing
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.tldr_dataset import POST_FIELDS, SUMMARY_FIELDS, field_at
from dynamic_dpo.eval.prompts.turns import given_turns, with_turns
from dynamic_dpo.eval.records import Message, PromptRecord
from dynamic_dpo.utils.blank_text import is_blank
from dynamic_dpo.utils.templates import parse_hh_to_messages

_TEXT_FIELDS: Final = tuple(name for name in (*POST_FIELDS, "question", "query") if name != "prompt")
_REFERENCE_FIELDS: Final = (*SUMMARY_FIELDS, "reference", "output")
_CONVERSATIONS: Final = ("prompt_messages", "prompt", "messages", "conversation")
_SOURCE_IDS: Final = ("question_id", "uid")
_OPENS_WITH_TAG: Final = re.compile(r"\s*Human:")


@dataclass(frozen=True)
class PromptFields:
    """Where the parts of a row stand, where that was said.

    Attributes:
        post: Field of the prompt; a dot reaches into an object. ``None``: found by the shape of the row.
        reference: Field of the known answer. ``None``: found by its usual names, and may be missing.
        source_id: Field of the row's own identifier, kept as ``meta["source_id"]``.
        meta: Fields copied to ``meta`` under their last name.
        category: Category of rows that name none.
        turns: Whether all turns of a row are kept, where it has a list of them, and not the first alone.
    """

    post: str | None = None
    reference: str | None = None
    source_id: str | None = None
    meta: Sequence[str] = ()
    category: str | None = None
    turns: bool = False


def read_prompt(row: object, fields: PromptFields | None = None) -> PromptRecord:
    r"""Read a row as a prompt.

    Args:
        row: A text, a list of messages, or an object (see the module).
        fields: Where its parts stand.

    Returns:
        The record. Its conversation ends with a turn that is not the assistant's; an answer that the row gives
        to it (the chosen one, a summary, a baseline's output) is the reference.

    Raises:
        BadRow: With one of the reasons in ``quarantine.REASONS``.

    Example:
        >>> row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
        >>> prompt = read_prompt(row)
        >>> prompt.messages, prompt.reference
        ([{'role': 'user', 'content': 'Hi'}], 'Hello')
        >>> read_prompt({"instruction": "Name a fruit.", "output": "Fig", "dataset": "koala"}).category
        'koala'
    """
    fields = fields or PromptFields()
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, str):
        return _record(_from_text(pairing.text_field({"prompt": row}, "prompt")), None, {}, fields)
    if isinstance(row, list):
        return _record(*_before_the_answer(pairing.read_messages(row)), {}, fields)
    if not isinstance(row, Mapping):
        raise BadRow("not_an_object", row)
    messages, answer = _parts(row, fields)
    record = _record(messages, _reference(row, answer, fields), row, fields)
    return with_turns(record, row) if fields.turns else record


def _parts(row: Mapping[str, Any], fields: PromptFields) -> tuple[list[Message], str | None]:
    """Return the conversation of an object and the answer that stands behind it, if any."""
    if fields.post is not None:
        return _given(row, fields.post)
    turns = given_turns(row)
    if turns is not None or row.get("turns") is not None:
        return _first_turn(turns), None
    for name in _CONVERSATIONS:
        if isinstance(row.get(name), list):
            return _before_the_answer(pairing.read_messages(row[name]))
    if isinstance(row.get("chosen"), list):
        return _shared_beginning(row)
    if row.get("prompt") is not None:
        return _from_text(pairing.text_field(row, "prompt")), None
    if row.get("instruction") is not None:
        parts = [pairing.text_field(row, name) for name in ("instruction", "input") if row.get(name)]
        return _user("\n\n".join(parts)), None
    if isinstance(row.get("chosen"), str):
        return _from_preference(row)
    for name in _TEXT_FIELDS:
        if isinstance(field_at(row, name), str):
            return _given(row, name)
    raise BadRow("missing_field", f"no field of a prompt among {sorted(map(str, row))}")


def _given(row: Mapping[str, Any], path: str) -> tuple[list[Message], str | None]:
    value = field_at(row, path)
    if isinstance(value, list):
        return _before_the_answer(pairing.read_messages(value))
    return _from_text(pairing.text_field({path: value}, path)), None


def _first_turn(turns: list[Any] | None) -> list[Message]:
    # The later turns of such a set answer what the assistant has said, which nobody has said yet.
    return _user(pairing.text_field({"content": turns[0] if turns else None}, "content"))


def _shared_beginning(row: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """Return what two conversations begin with; of one alone, what comes before its last answer."""
    chosen = pairing.read_messages(row["chosen"])
    if row.get("rejected") is None:
        return _before_the_answer(chosen)
    rejected = pairing.read_messages(row["rejected"])
    end = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
    if end is None:  # Equal as far as they go: no answer differs, the last one ends the prompt.
        return _before_the_answer(chosen)
    return chosen[:end], _text_of(chosen[end:])


def _from_preference(row: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    chosen = pairing.text_field(row, "chosen")
    if hh_text.looks_like_hh(chosen):
        prompt, answer = hh_text.split_prompt_and_response(chosen)
        return parse_hh_to_messages(prompt), answer.strip()
    pair = pairing.read_pair(row, "text")
    return _user(pair.prompt), str(pair.chosen).strip()


def _from_text(text: str) -> list[Message]:
    return parse_hh_to_messages(text) if _OPENS_WITH_TAG.match(text) else _user(text)


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _before_the_answer(messages: list[Message]) -> tuple[list[Message], str | None]:
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end], _text_of(messages[end:])


def _text_of(answer: list[Message]) -> str | None:
    return answer[0]["content"].strip() if len(answer) == 1 else None


def _reference(row: Mapping[str, Any], answer: str | None, fields: PromptFields) -> str | None:
    if fields.reference is not None:
        return pairing.text_field({fields.reference: field_at(row, fields.reference)}, fields.reference)
    if answer:
        return answer
    chosen = row.get("chosen")
    if isinstance(chosen, str) and not hh_text.looks_like_hh(chosen):
        return chosen.strip() or None
    if isinstance(chosen, list):
        return _text_of(pairing.read_messages(chosen))
    found = (field_at(row, name) for name in _REFERENCE_FIELDS)
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)


def _record(
    messages: list[Message], reference: str | None, row: Mapping[str, Any], fields: PromptFields
) -> PromptRecord:
    if all(is_blank(message["content"]) for message in messages):
        raise BadRow("empty_prompt", row or messages)
    if messages[-1]["role"] == "assistant" or is_blank(messages[-1]["content"]):
        raise BadRow("nothing_to_answer", messages[-1])
    meta = {path.rpartition(".")[2]: field_at(row, path) for path in fields.meta}
    # Under their own names too, by which the sets' own tools know them.
    meta |= {name: str(row[name]) for name in _SOURCE_IDS if row.get(name) is not None}
    source_id = _source_id(row, fields)
    if source_id is not None:
        meta["source_id"] = source_id
    return PromptRecord.of(messages, reference=reference, category=_category(row, fields), meta=meta)


def _source_id(row: Mapping[str, Any], fields: PromptFields) -> str | None:
    if fields.source_id is not None:
        value = field_at(row, fields.source_id)
        if value is None:
            raise BadRow("missing_field", f"{fields.source_id} is missing in {row!r}")
        return str(value)
    found = next((row[name] for name in _SOURCE_IDS if row.get(name) is not None), None)
    return None if found is None else str(found)


def _category(row: Mapping[str, Any], fields: PromptFields) -> str | None:
    # AlpacaEval calls the set that an instruction was taken from its dataset.
    value = row.get("category") or ("instruction" in row and row.get("dataset"))
    return value if isinstance(value, str) else fields.category
