"""One row, read as one supervised example: what comes before the answer, and the answer.

Takes conversations, prompt/completion rows and the good answer of preference rows. Pure functions on plain
objects, like ``pairing``, whose shapes they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dynamic_dpo.data import hh_text, pairing
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.shapes.beside import TEMPLATE_COLUMNS, template_settings, unused_names, with_system
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.shapes.table import rewritten
from dynamic_dpo.data.turns.endings import end_of_text, human_turns
from dynamic_dpo.utils.blank_text import is_blank
from dynamic_dpo.utils.templates import parse_hh_to_messages

_ANYWHERE: Final = frozenset(("system", "system_prompt")) | TEMPLATE_COLUMNS
_OF_CONVERSATIONS: Final = _ANYWHERE | {"messages"}
_OF_COMPLETIONS: Final = _ANYWHERE | {"prompt", "prompt_messages", "completion"}


class Example(NamedTuple):
    """A prompt and its completion: both text or both messages."""

    prompt: Any
    completion: Any


class ReadExample(NamedTuple):
    """A row as it was read.

    Attributes:
        example: The example.
        shapes: Names of the shapes that it had, see `dynamic_dpo.data.shapes.table`.
        unused: Names of what it holds besides and nothing reads; of a message as ``messages.NAME``.
        template: ``tools`` and ``kwargs`` of the row, for the chat template; empty where it has none.
    """

    example: Example
    shapes: tuple[str, ...]
    unused: tuple[str, ...]
    template: dict[str, Any]


def read_example(
    row: object,
    *,
    as_messages: bool,
    options: ShapeOptions = ShapeOptions(),  # noqa: B008
) -> Example:
    r"""Read a row as an example.

    Args:
        row: The row.
        as_messages: Give both parts as messages; otherwise both as text.
        options: What is said of the shape of preference rows.

    Returns:
        The example. Of a conversation, the completion is its last assistant message, and what follows that is
        left out.

    Raises:
        BadRow: With one of the reasons in ``quarantine.REASONS``.

    Example:
        >>> read_example({"prompt": "2+2?", "completion": " 4"}, as_messages=False)
        Example(prompt='2+2?', completion=' 4')
        >>> read_example({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4"}, as_messages=True).completion
        [{'role': 'assistant', 'content': '4'}]
    """
    return read_sft_row(row, as_messages=as_messages, options=options).example


def read_sft_row(
    row: object,
    *,
    as_messages: bool,
    options: ShapeOptions = ShapeOptions(),  # noqa: B008
) -> ReadExample:
    """Read a row as an example, and say what it holds besides.

    Args:
        row: The row.
        as_messages: See `read_example`.
        options: What is said of the shape of preference rows.

    Raises:
        BadRow: With one of the reasons in ``quarantine.REASONS``.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not_an_object", row)
    pairing.refuse_images(row)
    shapes: tuple[str, ...] = ()
    if row.get("messages") is None and row.get("completion") is None:
        row, shapes = rewritten(row, options)
    if row.get("messages") is not None:
        read = _OF_CONVERSATIONS
        example = _split_conversation(pairing.read_messages(row["messages"], carried=True), row)
    elif row.get("completion") is not None:
        read, example = _OF_COMPLETIONS, _answered(row, "completion")
    else:
        read, example = pairing.read_columns(pairing.detect_kind(row)), _chosen(row)
    if as_messages and isinstance(example.prompt, str):
        answer = {"role": "assistant", "content": example.completion.strip()}
        example = Example(parse_hh_to_messages(example.prompt), [answer])
    if not as_messages and not isinstance(example.prompt, str):
        raise BadRow("not_text", f"a conversation needs a tokenizer with a chat template: {row!r}")
    template = template_settings(row)
    if template and not as_messages:
        raise BadRow("needs_template", template)
    example = example._replace(prompt=with_system(example.prompt, row))
    return ReadExample(example, shapes, unused_names(row, read), template)


def _chosen(row: Mapping[str, Any]) -> Example:
    """Read the good answer; the rejected one may be missing unless only it shows where the prompt ends."""
    kind = pairing.detect_kind(row)
    if kind == "hh":
        prompt, response = hh_text.split_prompt_and_response(pairing.text_field(row, "chosen"))
        if hh_text.has_blank_prompt(prompt):
            raise BadRow("empty_prompt", row)
        return _checked(prompt, response, row)
    gives_messages = kind is not None and pairing.ROW_KINDS[kind].parts in ("messages", "sampled")
    if gives_messages or isinstance(row.get("prompt"), str):
        return _answered(row, "chosen")
    pair = pairing.read_pair(row, "text")
    return Example(pair.prompt, pair.chosen)


def _answered(row: Mapping[str, Any], answer: str) -> Example:
    """Read an explicit prompt, in text or messages, and the field with its answer."""
    value = pairing.required(row, answer)
    prompt = row.get("prompt_messages") if row.get("prompt_messages") is not None else row.get("prompt")
    if isinstance(prompt, list):
        messages = pairing.read_messages(prompt, carried=True)
        return _split_conversation(messages + pairing.answer_messages(messages, value, carried=True), row)
    if isinstance(value, list):  # A prompt in text beside a whole conversation repeats its beginning.
        return _split_conversation(pairing.read_messages(value, carried=True), row)
    return _checked(pairing.text_field(row, "prompt"), pairing.text_field(row, answer), row)


def _split_conversation(messages: list[pairing.Message], row: object) -> Example:
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        raise BadRow("answer_not_assistant", row)
    if all(pairing.says_nothing(message) for message in messages[:last]):
        raise BadRow("empty_prompt", row)
    if pairing.says_nothing(messages[last]):
        raise BadRow("empty_chosen", row)
    return Example(messages[:last], messages[last : last + 1])


def _checked(prompt: str, completion: str, row: object) -> Example:
    completion = end_of_text(prompt, completion).answer
    if turns := human_turns(prompt, completion):
        # As in a conversation: what precedes the last turn of the assistant is its prompt.
        prompt, completion = prompt + completion[: turns[-1].end], completion[turns[-1].end :]
    if is_blank(prompt):
        raise BadRow("empty_prompt", row)
    if is_blank(completion):
        raise BadRow("empty_chosen", row)
    return Example(prompt, completion)
