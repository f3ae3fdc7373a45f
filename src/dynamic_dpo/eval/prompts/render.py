"""From a conversation to the token ids that one model reads, rendered once.

The conversation is the same for every model of an evaluation; what a model is given of it may differ: chat messages,
rendered by the tokenizer's own template with its generation header, or plain text, continued as it stands, with an
instruction around either. Nothing downstream sees text again, so nothing can be tokenised twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from dynamic_dpo.errors import DataError, ModelError
from dynamic_dpo.eval.records import Message

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
PromptFormat = Literal["auto", "chat", "text"]
_TAGS = {"user": "Human", "assistant": "Assistant"}


def model_prompt(
    messages: Sequence[Message],
    *,
    template: str | None = None,
    prompt_format: PromptFormat = "auto",
    has_chat_template: bool = True,
) -> Prompt:
    r"""Return a conversation as one model is to read it.

    Args:
        messages: The conversation.
        template: Text with ``{prompt}`` in the place of the last turn (chat), or of the whole conversation (text).
        prompt_format: ``chat`` gives messages, ``text`` plain text: without a template the HH transcript that HH
            models are trained on. ``auto`` takes what the tokenizer can do.
        has_chat_template: Whether the tokenizer has a chat template.

    Returns:
        Messages, or text.

    Example:
        >>> turns = [{"role": "user", "content": "Why?"}]
        >>> model_prompt(turns, template="Answer in one word: {prompt}")
        [{'role': 'user', 'content': 'Answer in one word: Why?'}]
        >>> model_prompt(turns, prompt_format="text")
        '\n\nHuman: Why?\n\nAssistant:'
        >>> model_prompt(turns, prompt_format="text", template="{prompt}\n\nTL;DR:")
        'Why?\n\nTL;DR:'
    """
    if prompt_format == "chat" or (prompt_format == "auto" and has_chat_template):
        if template is None:
            return list(messages)
        *before, last = messages
        return [*before, {**last, "content": template.replace("{prompt}", last["content"])}]
    if template is None:
        return transcript(messages) + "\n\nAssistant:"
    alone = len(messages) == 1
    return template.replace("{prompt}", messages[0]["content"] if alone else transcript(messages).lstrip())


def transcript(messages: Sequence[Message]) -> str:
    r"""Write a conversation with the tags of HH; what has another role stands without one.

    Example:
        >>> transcript([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}])
        '\n\nHuman: Hi\n\nAssistant: Yes?'
    """
    parts = []
    for message in messages:
        tag = _TAGS.get(message["role"])
        parts.append(f"\n\n{tag}: {message['content']}" if tag else f"\n\n{message['content']}")
    return "".join(parts)


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


def check_messages(prompt: Sequence[Mapping[str, str]]) -> None:
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
