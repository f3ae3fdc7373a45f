"""One row, read as one preference pair.

Recognises the shapes in which preference data is published and gives prompt, chosen and rejected, or raises
``BadRow`` with the reason. Pure functions on plain objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from dynamic_dpo.data import hh_text
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.shapes.beside import (
    CARRIED,
    NOTHING,
    TEMPLATE_COLUMNS,
    clean_text,
    template_settings,
    unused_names,
    with_system,
)
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.shapes.other_names import as_message
from dynamic_dpo.data.shapes.table import rewritten
from dynamic_dpo.data.turns.endings import end_of_text, human_turns
from dynamic_dpo.utils.blank_text import is_blank
from dynamic_dpo.utils.templates import parse_hh_to_messages

TOKEN_FIELDS: Final = ("prompt_ids", "chosen_ids", "rejected_ids")
MASK_FIELDS: Final = ("chosen_mask", "rejected_mask")
"""Of an answer that others speak in, 1 for each token that is scored and 0 for others; null where all are."""

# Of these, what a turn says beside its content.
_SAYS: Final = ("tool_calls", "reasoning_content", "thinking")

# Columns and parts of a message that hold what is no text; under other names a model would not be given it either.
_NOT_TEXT: Final = (
    "image",
    "images",
    "image_url",
    "input_image",
    "video",
    "videos",
    "audio",
    "audios",
    "input_audio",
)

Message = dict[str, Any]
Part = str | list[Message] | list[int]

# Scripts below this code point put blanks between words; above it (CJK and others) any place is a boundary.
_FIRST_UNSPACED_SCRIPT: Final = 0x2E80


class Pair(NamedTuple):
    """A prompt and its two answers: all text, all messages, or all token ids."""

    prompt: Any
    chosen: Any
    rejected: Any


class SampledPair(NamedTuple):
    """A conversation and two answers with the token ids that a model sampled, ``None`` where nobody gave them."""

    prompt: Any
    chosen: Any
    rejected: Any
    chosen_ids: list[int] | None
    rejected_ids: list[int] | None


class MaskedIds(NamedTuple):
    """A pair of token ids, and which tokens of its answers are scored; ``None`` for all."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_mask: list[int] | None = None
    rejected_mask: list[int] | None = None


class RowKind(NamedTuple):
    """A shape in which preference data is published.

    Attributes:
        parts: What prompt and answers are once read: ``text``, ``messages``, ``sampled`` or ``token_ids``.
        recognises: Whether a row looks like this kind; asked in the order of `ROW_KINDS`.
        read: From a row, and whether its prompt must be given rather than found, to the pair; raises ``BadRow``.
    """

    parts: Literal["text", "messages", "sampled", "token_ids"]
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], bool], Pair | SampledPair]


class ReadRow(NamedTuple):
    """A row as it was read.

    Attributes:
        pair: The pair.
        shapes: Names of the shapes that it had, see `dynamic_dpo.data.shapes.table`.
        unused: Names of what it holds besides and nothing reads; of a message as ``messages.NAME``.
        template: ``tools`` and ``kwargs`` of the row, for the chat template; empty where it has none.
    """

    pair: Pair | SampledPair
    shapes: tuple[str, ...]
    unused: tuple[str, ...]
    template: dict[str, Any]


# What each kind reads, besides what a shape has rewritten. The metadata of rollouts is their makers'.
_READ: Final = {
    "token_ids": frozenset((*TOKEN_FIELDS, *MASK_FIELDS)),
    "sampled": frozenset(
        (
            "prompt_messages",
            "chosen",
            "rejected",
            "chosen_ids",
            "rejected_ids",
            "metadata",
            "system",
            "system_prompt",
        )
    ),
    "rollouts": frozenset(("prompt_messages", "chosen", "rejected", "metadata", "system", "system_prompt")),
    "messages": frozenset(("prompt", "chosen", "rejected", "system", "system_prompt")),
    "hh": frozenset(("chosen", "rejected", "system", "system_prompt")),
    "text": frozenset(("prompt", "chosen", "rejected", "system", "system_prompt")),
}
_ANYWHERE: Final = frozenset(("prompt", "chosen", "rejected", "system", "system_prompt"))


def detect_kind(row: object, options: ShapeOptions = ShapeOptions()) -> str | None:  # noqa: B008
    """Return which of `ROW_KINDS` a row looks like, or None.

    Example:
        >>> detect_kind({"prompt": "Q:", "chosen": " yes", "rejected": " no"})
        'text'
    """
    if not isinstance(row, Mapping):
        return None
    try:
        row, _ = rewritten(row, options)
    except BadRow:
        return None
    return next((name for name, kind in ROW_KINDS.items() if kind.recognises(row)), None)


def read_pair(row: object, kind: str, *, as_messages: bool = False) -> Pair | SampledPair:
    r"""Read a row as a pair.

    Args:
        row: The row.
        kind: One of `ROW_KINDS`.
        as_messages: Give HH transcripts and plain text with an explicit prompt as chat messages.

    Returns:
        A pair with a prompt, two answers that are neither blank nor equal, and nothing else.

    Raises:
        BadRow: With one of the reasons in ``quarantine.REASONS``.

    Example:
        >>> read_pair({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "text")
        Pair(prompt='The sky is', chosen=' blue.', rejected=' black.')
    """
    return read_row(row, kind, as_messages=as_messages).pair


def read_row(
    row: object,
    kind: str,
    *,
    as_messages: bool = False,
    options: ShapeOptions = ShapeOptions(),  # noqa: B008
) -> ReadRow:
    """Read a row as a pair, and say what it holds besides.

    Args:
        row: The row.
        kind: One of `ROW_KINDS`.
        as_messages: See `read_pair`.
        options: What is said of its shape.

    Raises:
        BadRow: With one of the reasons in ``quarantine.REASONS``.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not_an_object", row)
    refuse_images(row)
    row, shapes = rewritten(row, options)
    pair = ROW_KINDS[kind].read(row, as_messages)
    if as_messages and ROW_KINDS[kind].parts == "text":
        pair = _to_messages(Pair(*pair[:3]))
    template: dict[str, Any] = {}
    if kind != "token_ids":
        pair, template = pair._replace(prompt=with_system(pair.prompt, row)), template_settings(row)
        if template and not isinstance(pair.prompt, list):
            raise BadRow("needs_template", template)
    _check(pair, row)
    return ReadRow(pair, shapes, unused_names(row, read_columns(kind)), template)


def read_columns(kind: str | None) -> frozenset[str]:
    """Return the columns that rows of a kind are read from; of no kind, those that any text row has."""
    if kind == "token_ids":
        return _READ[kind]
    return _READ.get(kind or "", _ANYWHERE) | TEMPLATE_COLUMNS


def common_text_prompt(chosen: str, rejected: str) -> str:
    """Return the common beginning of two texts, cut so that no word is cut.

    One blank before the first differing word belongs to the answers, where tokenizers expect it.

    Example:
        >>> common_text_prompt("It is great", "It is green")
        'It is'
    """
    length = min(len(chosen), len(rejected))
    end = next((i for i in range(length) if chosen[i] != rejected[i]), length)
    while end > 0 and any(_joins(text, end) for text in (chosen, rejected)):
        end -= 1
    if 0 < end < length and chosen[end - 1] == " ":
        end -= 1
    return chosen[:end]


def required(row: Mapping[str, Any], field: str) -> Any:
    """Return a field that must be there; ``missing_field`` if it is absent or null."""
    value = row.get(field)
    if value is None:
        raise BadRow("missing_field", f"{field} is missing in {row!r}")
    return value


def refuse_images(row: Mapping[str, Any]) -> None:
    """Raise ``has_images`` for a row with a column of images, sound or video that is not empty.

    Example:
        >>> refuse_images({"prompt": "What is this?", "images": []})
    """
    for name in _NOT_TEXT:
        value = row.get(name)
        if value is not None and not (isinstance(value, list) and not value):
            raise BadRow("has_images", f"column {name} holds {type(value).__name__}")


def text_field(row: Mapping[str, Any], field: str) -> str:
    """Return a field that must be text; ``missing_field`` or ``not_text`` if it is not."""
    value = required(row, field)
    if not isinstance(value, str):
        raise BadRow("not_text", f"{field} is {type(value).__name__}: {value!r}")
    return clean_text(value)


def read_messages(value: Any, *, carried: bool = False) -> list[Message]:
    """Return a conversation as ``{role, content}`` messages with text contents; ``bad_message`` if it is none.

    With ``carried``, a message keeps what is `CARRIED`, and its content may be null beside tool calls.

    Example:
        >>> read_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"}])
        [{'role': 'user', 'content': 'Hi'}]
    """
    if not isinstance(value, list):
        raise BadRow("bad_message", value)
    return [_message(item, carried) for item in value]


def answer_messages(prompt: list[Message], value: Any, *, carried: bool = False) -> list[Message]:
    """Return an answer to a conversation, given as text, as messages, or as messages that repeat the prompt."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": clean_text(value)}]
    messages = read_messages(value, carried=carried)
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _hh(row: Mapping[str, Any], prompt_required: bool) -> Pair:
    chosen_text, rejected_text = text_field(row, "chosen"), text_field(row, "rejected")
    if hh_text.ASSISTANT_TAG not in chosen_text.replace("\r\n", "\n"):
        raise BadRow("no_assistant_turn", chosen_text)
    prompt, chosen = hh_text.split_prompt_and_response(chosen_text)
    rejected = hh_text.continue_prompt(prompt, rejected_text)
    if rejected is None:
        raise BadRow("no_common_prompt", rejected_text)
    if hh_text.has_blank_prompt(prompt):
        raise BadRow("empty_prompt", row)
    return Pair(prompt, chosen, rejected)


def _text(row: Mapping[str, Any], prompt_required: bool) -> Pair:
    chosen, rejected = text_field(row, "chosen"), text_field(row, "rejected")
    if prompt_required or row.get("prompt") is not None:
        return Pair(text_field(row, "prompt"), chosen, rejected)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if is_blank(answer):
            raise BadRow(f"empty_{name}", row)
    if chosen == rejected:
        raise BadRow("identical_answers", chosen)
    prompt = common_text_prompt(chosen, rejected)
    if is_blank(prompt):
        raise BadRow("no_common_prompt", row)
    return Pair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _conversation(row: Mapping[str, Any], prompt_required: bool) -> Pair:
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return _answers_to(read_messages(prompt, carried=True), row)
    # A prompt given as text beside full conversations repeats what they begin with; they are complete.
    chosen, rejected = (read_messages(required(row, name), carried=True) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRow("identical_answers", chosen)
    end = 0
    while end < min(len(chosen), len(rejected)) and chosen[end] == rejected[end]:
        end += 1
    if not end:
        raise BadRow("no_common_prompt", row)
    return Pair(chosen[:end], chosen[end:], rejected[end:])


def _rollout(row: Mapping[str, Any], prompt_required: bool) -> Pair:
    return _answers_to(read_messages(required(row, "prompt_messages"), carried=True), row)


def _sampled(row: Mapping[str, Any], prompt_required: bool) -> SampledPair:
    ids = (
        None if row.get(field) is None else _token_ids(row, field) for field in ("chosen_ids", "rejected_ids")
    )
    return SampledPair(*_rollout(row, prompt_required), *ids)


def _tokens(row: Mapping[str, Any], prompt_required: bool) -> Any:
    prompt, *answers = (_token_ids(row, field) for field in TOKEN_FIELDS)
    masks = (_mask(row, field, ids) for field, ids in zip(MASK_FIELDS, answers, strict=True))
    return MaskedIds(prompt, *answers, *masks)


def _mask(row: Mapping[str, Any], field: str, ids: list[int]) -> list[int] | None:
    if row.get(field) is None:
        return None
    mask = _token_ids(row, field)
    if ids and (len(mask) != len(ids) or not {1} <= {*mask} <= {0, 1}):
        raise BadRow(
            "bad_token_ids", f"{field} is no 0 or 1 for each of {len(ids)} tokens, not all 0: {mask}"
        )
    return mask


def _answers_to(prompt: list[Message], row: Mapping[str, Any]) -> Pair:
    answers = (
        answer_messages(prompt, required(row, field), carried=True) for field in ("chosen", "rejected")
    )
    return Pair(prompt, *answers)


def _to_messages(pair: Pair) -> Pair:
    return Pair(parse_hh_to_messages(pair.prompt), *(_answer_turns(pair.prompt, text) for text in pair[1:]))


def _answer_turns(prompt: str, answer: str) -> list[Message]:
    if human_turns(prompt, answer):
        return parse_hh_to_messages(hh_text.ASSISTANT_TAG + answer)
    return [{"role": "assistant", "content": answer.strip()}]


def _check(pair: Pair | SampledPair, row: object) -> None:
    for name, part in zip(Pair._fields, pair[:3], strict=True):
        # Token ids are left alone here: a prompt of no tokens is judged where BOS is known.
        if _is_blank(part) and not (name == "prompt" and isinstance(row, Mapping) and "prompt_ids" in row):
            raise BadRow(f"empty_{name}", row)
    for answer in (pair.chosen, pair.rejected):
        if isinstance(answer[0], dict) and answer[0]["role"] != "assistant":
            raise BadRow("answer_not_assistant", answer)
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        # What others say behind an answer does not make it one.
        if _is_blank(_said_by_the_assistant(pair.prompt, answer)):
            raise BadRow(f"empty_{name}", row)
    if pair.chosen == pair.rejected:
        raise BadRow("identical_answers", pair.chosen)


def _said_by_the_assistant(prompt: Part, answer: Part) -> Any:
    if isinstance(answer, str):
        return end_of_text(prompt, answer).answer if isinstance(prompt, str) else answer
    return [item for item in answer if not isinstance(item, dict) or item["role"] == "assistant"]


def _is_blank(part: Part) -> bool:
    if isinstance(part, str):
        return is_blank(part)
    return not part or all(isinstance(item, dict) and says_nothing(item) for item in part)


def says_nothing(message: Message) -> bool:
    """Return whether a message has neither text nor anything else that is said.

    >>> says_nothing({"role": "assistant", "content": ""})
    True
    """
    return is_blank(message["content"]) and not any(message.get(name) for name in _SAYS)


def _joins(text: str, index: int) -> bool:
    """Tell whether cutting before ``index`` would cut a word."""
    around = text[index - 1 : index + 1]
    return len(around) == 2 and all(c.isalnum() and ord(c) < _FIRST_UNSPACED_SCRIPT for c in around)


def _message(item: Any, carried: bool) -> Message:
    item = as_message(item)
    role = item.get("role") if isinstance(item, Mapping) else None
    content = item.get("content") if isinstance(item, Mapping) else None
    parts = content if isinstance(content, list) else ()
    kinds = {part.get("type") for part in parts if isinstance(part, Mapping)}
    if unread := [name for name in _NOT_TEXT if name in kinds]:
        raise BadRow("has_images", f"a message of {role} has a part of type {unread[0]}")
    if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text") or "") for part in content)
    more = _carried(item) if carried and isinstance(item, Mapping) else {}
    if content is None and any(more.get(name) for name in _SAYS):
        content = ""
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise BadRow("bad_message", item)
    return {"role": clean_text(role), "content": clean_text(content), **more}


def _carried(item: Mapping[str, Any]) -> Message:
    found = {name: item[name] for name in CARRIED if item.get(name) not in NOTHING}
    try:
        # Null fields are what Arrow fills in where other rows have them.
        found = {name: _without_nulls(value) for name, value in found.items()}
        json.dumps(found, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise BadRow("bad_message", item) from None
    for name in ("reasoning_content", "thinking", "tool_call_id"):
        if name in found and not isinstance(found[name], str):
            raise BadRow("bad_message", item)
    if not isinstance(found.get("tool_calls", []), list):
        raise BadRow("bad_message", item)
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _token_ids(row: Mapping[str, Any], field: str) -> list[int]:
    value = required(row, field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("bad_token_ids", f"{field} is {type(value).__name__}: {value!r}")
    # bool is an int to Python; 2**31 is none to the int32 columns.
    if not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise BadRow("bad_token_ids", f"{field}: {value!r}")
    return list(value)


def _has_ids(row: Mapping[str, Any]) -> bool:
    return row.get("chosen_ids") is not None and row.get("rejected_ids") is not None


def _has_conversations(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), list) or isinstance(row.get("chosen"), list)


def _is_transcript(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("chosen"), str) and hh_text.looks_like_hh(row["chosen"])


# Already tokenised, judged rollouts with their sampled ids and without, conversations, HH transcripts, plain text. A
# new format is a line here with its two functions; the first that recognises a row has it.
ROW_KINDS: Final[dict[str, RowKind]] = {
    "token_ids": RowKind("token_ids", lambda row: row.get("prompt_ids") is not None, _tokens),
    "sampled": RowKind(
        "sampled", lambda row: row.get("prompt_messages") is not None and _has_ids(row), _sampled
    ),
    "rollouts": RowKind("messages", lambda row: row.get("prompt_messages") is not None, _rollout),
    "messages": RowKind("messages", _has_conversations, _conversation),
    "hh": RowKind("text", _is_transcript, _hh),
    "text": RowKind("text", lambda row: isinstance(row.get("chosen"), str), _text),
}
