"""Faults that can be seen in an output alone, without its prompt or a judge.

Each check names one way in which generation has gone wrong elsewhere: a judge that reads a role header or a
loop of one phrase compares accidents, not answers.
"""

from __future__ import annotations

import re

# "assistant" alone on the first line is what a generation header leaves behind when it is written twice.
ROLE_HEADER = re.compile(
    r"""\A\s*(?:
        (?:assistant|user|human|system)\s*(?:\n|\Z)          # a bare role on a line of its own
      | (?:assistant|user|human|system|ai)\s*:               # "Assistant: ..."
      | \#{1,6}\s*(?:assistant|user|human|system)\b[:\s]     # "### Assistant"
    )""",
    re.IGNORECASE | re.VERBOSE,
)
LATER_TURN = re.compile(r"\n\s*(?:human|assistant|user)\s*:", re.IGNORECASE)
TEMPLATE_TOKEN = re.compile(
    r"<\|[\w ]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>",
    re.IGNORECASE,
)
# Ten equal characters, a phrase of up to 60 characters five times on end, or six words that come back thrice.
LOOP = re.compile(r"(\S)\1{9,}|(\S.{0,58}\S\s*)\2{4,}", re.DOTALL)
REPEATED_WORDS = 6
REPEATED_TIMES = 3


def lint_output(text: str) -> list[str]:
    """Name the faults of one output.

    Args:
        text: The output, special tokens not removed.

    Returns:
        Any of ``empty`` (nothing but white space), ``role_header`` (opens with the name of a role, or goes
        on to another speaker's turn), ``template_token`` (markup of a chat template) and ``repetition``
        (a phrase in a loop); nothing for a sound output.

    Example:
        >>> lint_output("A warm room and a kind cook.")
        []
        >>> lint_output("assistant\\n\\nA warm room.<|im_end|>")
        ['role_header', 'template_token']
        >>> lint_output("So good. So good. So good. So good. So good. ")
        ['repetition']
    """
    if not text.strip():
        return ["empty"]
    faults = []
    if ROLE_HEADER.search(text) or LATER_TURN.search(text):
        faults.append("role_header")
    if TEMPLATE_TOKEN.search(text):
        faults.append("template_token")
    if LOOP.search(text) or _words_come_back(text):
        faults.append("repetition")
    return faults


def _words_come_back(text: str) -> bool:
    words = text.lower().split()
    seen: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - REPEATED_WORDS + 1):
        phrase = tuple(words[start : start + REPEATED_WORDS])
        seen[phrase] = seen.get(phrase, 0) + 1
        if seen[phrase] == REPEATED_TIMES:
            return True
    return False
