"""Prompts as users write them, rendered once to the token ids that a model reads.

A prompt is plain text, continued as it stands, or a list of chat messages, rendered by the tokenizer's own
template with its generation header. Nothing downstream sees text again, so nothing can be tokenised twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from dynamic_dpo.errors import DataError, ModelError

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[Message]


def prompt_key(prompt: Prompt) -> str:
    """Return a name for a prompt that depends on its content alone.

    Args:
        prompt: Plain text or chat messages.

    Returns:
        64 hexadecimal digits, the same on every machine and for any order of a message's fields.

    Example:
        >>> prompt_key([{"role": "user", "content": "Hi"}]) == prompt_key([{"content": "Hi", "role": "user"}])
        True
        >>> prompt_key("Hi") == prompt_key("Hi ")
        False
    """
    content = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def render_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Render one prompt to the token ids after which the model is to write.

    Args:
        tokenizer: A Hugging Face tokenizer; messages need one with a chat template.
        prompt: Plain text (gets the tokenizer's special tokens) or chat messages that end with a turn other
            than the assistant's (rendered by the template, special tokens included, generation header once).

    Returns:
        The ids, at least one.

    Raises:
        DataError: If the prompt is empty, is no list of messages, or ends with the assistant's own turn.
        ModelError: If the tokenizer has no chat template, or its template opens the answer twice.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if not ids:
            raise DataError(
                "a prompt is the empty string and this tokenizer adds no start token: the model would have "
                "nothing to read; drop the prompt or give it text"
            )
        return ids
    check_messages(prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "a prompt is a list of messages but the tokenizer has no chat template: set "
            "tokenizer.chat_template, or give the prompt as plain text"
        )
    messages = [dict(message) for message in prompt]
    closed = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # A template may add nothing here (it then ends the user's turn itself); what it adds, it adds once.
    header = opened.removeprefix(closed)
    if header == opened or (header and closed.endswith(header)):
        raise ModelError(
            "the chat template does not open the answer exactly once: without and with "
            f"add_generation_prompt it gives {closed[-60:]!r} and {opened[-60:]!r}; correct the template"
        )
    # The template has written the special tokens; the tokenizer must not add them again.
    return list(tokenizer(opened, add_special_tokens=False)["input_ids"])


def check_messages(prompt: Sequence[Message]) -> None:
    """Raise a `DataError` unless ``prompt`` is a chat that waits for the assistant."""
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(
                f"a message must be an object with 'role' and 'content', got {str(message)[:80]!r}; "
                "a prompt is a string or a list of such messages"
            )
    if not prompt or prompt[-1]["role"] == "assistant":
        raise DataError(
            "a prompt must end with a turn that the assistant answers, got "
            + ("no message at all" if not prompt else "an assistant message last; drop that message")
        )
