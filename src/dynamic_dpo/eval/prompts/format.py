"""What a model is given of a prompt: chat messages for its template, or plain text, with an instruction around it.

The conversation itself is the same for every model of an evaluation; this is the part that may differ. Rendering to
token ids is done in ``prompts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dynamic_dpo.eval.prompts.render import Prompt
from dynamic_dpo.eval.records import Message

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
