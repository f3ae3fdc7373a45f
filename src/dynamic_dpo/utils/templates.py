"""Conversation text: the Llama-3 chat template, HH transcripts as messages, and the tokens that end an answer.

How turns are written down and which tokens close them; tokenizers are given, none is loaded.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

# Written for this project after the published header format. It inserts no date and no default system
# prompt, so a prompt renders the same text today, tomorrow, and in front of every answer.
LLAMA3_CHAT_TEMPLATE: Final = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim }}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)

# Tokens that published chat formats write after a finished turn. A base model's vocabulary often holds one
# that is not its eos token; generation that watches eos alone then never stops.
_TURN_ENDS: Final = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)

_HH_TURN: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


def parse_hh_to_messages(text: str) -> list[dict[str, str]]:
    r"""Read an HH transcript into chat messages.

    Turns begin with ``\n\nHuman:`` or ``\n\nAssistant:``. Text before the first tag becomes a system message,
    a text without any tag one user message. A final empty assistant turn is the place of the answer to come,
    not a message, and is left out.

    Args:
        text: A transcript, or the prompt part of one.

    Returns:
        Messages ``{"role": "system" | "user" | "assistant", "content": ...}``, contents without surrounding
        blanks, in order. Empty for a blank text.

    Example:
        >>> parse_hh_to_messages("\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:")
        ... # doctest: +NORMALIZE_WHITESPACE
        [{'role': 'user', 'content': 'Hi!'}, {'role': 'assistant', 'content': 'Hello.'},
         {'role': 'user', 'content': 'Bye'}]
    """
    text = text.replace("\r\n", "\n")
    tags = list(_HH_TURN.finditer(text))
    before = text[: tags[0].start()].strip() if tags else text.strip()
    messages = [{"role": "system" if tags else "user", "content": before}] if before else []
    for tag, following in pairwise([*tags, None]):
        assert tag is not None  # Only the last of the list is.
        end = following.start() if following else len(text)
        messages.append({"role": _HH_ROLES[tag[1]], "content": text[tag.end() : end].strip()})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return every token that ends an answer for this vocabulary.

    Args:
        tokenizer: A Hugging Face tokenizer.
        generation_config: The model's generation configuration, if there is one; its ``eos_token_id`` (one
            or several) is added.

    Returns:
        Token ids in ascending order: the tokenizer's eos, the configuration's, and the known turn ends that
        are in the vocabulary. Empty if there is none.

    Example:
        >>> class Tokenizer:
        ...     eos_token_id = 2
        ...     def get_vocab(self):
        ...         return {"a": 0, "<|im_end|>": 1, "</s>": 2}
        >>> stop_token_ids(Tokenizer())
        [1, 2]
    """
    vocabulary = tokenizer.get_vocab()
    stops = {vocabulary[token] for token in _TURN_ENDS if token in vocabulary}
    if "<|return|>" in vocabulary:
        # In formats with <|return|>, <|end|> closes a channel inside the answer, not the answer.
        stops.discard(vocabulary.get("<|end|>"))
    for source in (tokenizer, generation_config):
        declared = getattr(source, "eos_token_id", None)
        if declared is not None:
            stops.update(declared if isinstance(declared, (list, tuple, set)) else [declared])
    return sorted(int(token) for token in stops)
