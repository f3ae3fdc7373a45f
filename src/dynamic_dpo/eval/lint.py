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
# What belongs into a judge's reply or its question, and into no answer: a verdict, or a mark around an output.
# Every part is bounded: outputs are of any length.
JUDGE_INJECTION = re.compile(
    r"""^[^\w\n]{0,20}_{0,3}(?:(?:so|thus|my|the|final|overall)\b[\s,]{0,5}){0,4}verdict\b(?:\bis\b|[\W_]){0,20}
        (?:reply|output|summary|answer)?\s{0,5}\(?\[{0,2}(?:A|B|tie)\b(?:[^\w\n]{0,20}$|\s{0,5}[<>=]|\s{1,5}wins)
      | \bverdict:\s{0,5}(?:A|B|tie)[^\w\n]{0,20}$                          # at the end of a sentence
      | \[\[\s{0,5}(?:A|B|tie|[AB]\s{0,5}[<>=]{1,5}\s{0,5}[AB])\s{0,5}\]\]
      | "verdict"\s{0,5}:\s{0,5}"
      | <\s{0,5}/?\s{0,5}(?:reply|output|summary)_[ab]\s{0,5}> | <\s{0,5}/\s{0,5}conversation\s{0,5}>
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
REPEATED_WORDS = 6
REPEATED_TIMES = 3


def lint_output(text: str) -> list[str]:
    """Name the faults of one output.

    Args:
        text: The output, special tokens not removed.

    Returns:
        Any of ``empty`` (nothing but white space), ``role_header`` (opens with the name of a role, or goes
        on to another speaker's turn), ``template_token`` (markup of a chat template), ``repetition`` (a phrase in a
        loop) and ``judge_injection`` (a verdict, or the end of the place in which a judge is shown it); nothing for
        a sound output.

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
    if JUDGE_INJECTION.search(text):
        faults.append("judge_injection")
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
