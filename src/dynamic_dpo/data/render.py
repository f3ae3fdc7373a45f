"""Conversations become text through the tokenizer's chat template.

Prompt and answers are always rendered as one conversation, never glued from pieces, and the prompt by itself
only to find where the answer begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from dynamic_dpo.data.pairing import Message, Pair
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.turns.endings import Span
from dynamic_dpo.data.turns.written import Conversation
from dynamic_dpo.errors import DataError

# What a template can raise on a conversation it does not expect, beside its own refusals.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class RenderedPair(NamedTuple):
    """A prompt that ends where the model is to speak, and the two whole conversations."""

    prompt: str
    chosen: str
    rejected: str


def require_chat_template(tokenizer: Any) -> None:
    """Check that conversations can be rendered.

    Raises:
        DataError: If the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"the rows are conversations, but the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
            "template: set tokenizer.chat_template (for instance to dynamic_dpo.utils.templates."
            "LLAMA3_CHAT_TEMPLATE), or use text rows with dataset.chat_template=false"
        )


def render_pairs(
    tokenizer: Any, pairs: Sequence[Pair], arguments: Mapping[str, Any] | None = None
) -> list[RenderedPair | BadRow]:
    """Render pairs of messages.

    Args:
        tokenizer: A tokenizer with a chat template.
        pairs: Prompts and answers as lists of messages.
        arguments: Further arguments of the template, ``tools`` among them.

    Returns:
        For each pair its three texts, or ``BadRow("template_error", ...)`` where the template refused it.
    """
    try:
        return list(_render(tokenizer, pairs, arguments or {}))
    except _TEMPLATE_FAULTS as error:
        # One refused conversation fails its whole batch: find it, and save the others.
        if len(pairs) == 1:
            return [BadRow("template_error", f"{error} ({pairs[0].prompt!r})")]
        middle = len(pairs) // 2
        return [
            *render_pairs(tokenizer, pairs[:middle], arguments),
            *render_pairs(tokenizer, pairs[middle:], arguments),
        ]


def render_conversation(
    tokenizer: Any, messages: list[Message], open_turn: bool, arguments: Mapping[str, Any] | None = None
) -> str | None:
    """Render one conversation, or the beginning of one; None where the template refuses it."""
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn, **(arguments or {})
            )
        )
    except _TEMPLATE_FAULTS:
        return None


def as_conversation(
    tokenizer: Any, messages: list[Message], text: str, arguments: Mapping[str, Any] | None = None
) -> Conversation:
    """Return a rendered conversation in which the assistant's turns can be found.

    Args:
        tokenizer: The tokenizer whose template rendered it.
        messages: The conversation.
        text: What became of it.
        arguments: The further arguments that it was rendered with.
    """

    def render(part: list[Message], open_turn: bool) -> str | None:
        return render_conversation(tokenizer, part, open_turn, arguments)

    return Conversation(messages, text, render, _marked(tokenizer, messages, text, arguments or {}))


def template_of(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    """Return the text of the template that a conversation is rendered by: tokenizers may have one for tools alone."""
    return str(tokenizer.get_chat_template(tools=arguments.get("tools")))


def _marked(tokenizer: Any, messages: list[Message], text: str, arguments: Mapping[str, Any]) -> list[Span]:
    """Return what ``{% generation %}`` marks of the template enclose in ``text``; nothing where there are none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = template_of(tokenizer, arguments)
    if not _MARKS.search(template):
        return []
    (rendered,), (spans,) = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **arguments},
    )
    return [Span(*span) for span in spans] if rendered == text else []


def _render(tokenizer: Any, pairs: Sequence[Pair], arguments: Mapping[str, Any]) -> list[RenderedPair]:
    def apply(conversations: list[list[Message]], *, open_turn: bool) -> list[str]:
        rendered = tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=open_turn, **arguments
        )
        return [str(text) for text in rendered]

    prompts = apply([pair.prompt for pair in pairs], open_turn=True)
    chosen = apply([pair.prompt + pair.chosen for pair in pairs], open_turn=False)
    rejected = apply([pair.prompt + pair.rejected for pair in pairs], open_turn=False)
    return [RenderedPair(*texts) for texts in zip(prompts, chosen, rejected, strict=True)]
