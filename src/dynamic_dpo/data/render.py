"""Conversations become text through the tokenizer's chat template.

Prompt and answers are always rendered as one conversation, never glued from pieces, and the prompt by itself
only to find where the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from dynamic_dpo.data.pairing import Message, Pair
from dynamic_dpo.data.quarantine import BadRow
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


def render_pairs(tokenizer: Any, pairs: Sequence[Pair]) -> list[RenderedPair | BadRow]:
    """Render pairs of messages.

    Args:
        tokenizer: A tokenizer with a chat template.
        pairs: Prompts and answers as lists of messages.

    Returns:
        For each pair its three texts, or ``BadRow("template_error", ...)`` where the template refused it.
    """
    try:
        return list(_render(tokenizer, pairs))
    except _TEMPLATE_FAULTS as error:
        # One refused conversation fails its whole batch: find it, and save the others.
        if len(pairs) == 1:
            return [BadRow("template_error", f"{error} ({pairs[0].prompt!r})")]
        middle = len(pairs) // 2
        return render_pairs(tokenizer, pairs[:middle]) + render_pairs(tokenizer, pairs[middle:])


def _render(tokenizer: Any, pairs: Sequence[Pair]) -> list[RenderedPair]:
    def apply(conversations: list[list[Message]], *, open_turn: bool) -> list[str]:
        rendered = tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=open_turn
        )
        return [str(text) for text in rendered]

    prompts = apply([pair.prompt for pair in pairs], open_turn=True)
    chosen = apply([pair.prompt + pair.chosen for pair in pairs], open_turn=False)
    rejected = apply([pair.prompt + pair.rejected for pair in pairs], open_turn=False)
    return [RenderedPair(*texts) for texts in zip(prompts, chosen, rejected, strict=True)]
