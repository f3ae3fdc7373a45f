"""A chat model that judges by one token: its two labels' probabilities are how sure it is, as AlpacaEval 2 asks.

The question is a file in AlpacaEval's form, messages between ``<|im_start|>role`` and ``<|im_end|>`` with the places
``{instruction}``, ``{output_1}`` and ``{output_2}``. It is read by its name and is no part of the package.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dynamic_dpo.data.named_files import local_file
from dynamic_dpo.errors import ConfigError, DataError, JudgeError
from dynamic_dpo.eval.judges.base import Reply, conversation_text
from dynamic_dpo.eval.judges.chat.server import Token
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import PromptRecord

PLACES: Final = ("{instruction}", "{output_1}", "{output_2}")

_MESSAGE: Final = re.compile(r"<\|im_start\|>(\w+)[^\S\n]*\n(.*?)<\|im_end\|>", re.DOTALL)
_PLACE: Final = re.compile(r"\{(instruction|output_1|output_2)\}")


class ChoiceQuestion(NamedTuple):
    """A question that is answered by one of two tokens.

    Attributes:
        messages: Roles and texts with their places.
        sha256: Hash of the file.
    """

    messages: tuple[tuple[str, str], ...]
    sha256: str

    def filled(self, instruction: str, first: str, second: str) -> list[dict[str, str]]:
        """Return the chat messages of one question; braces and markers in the texts stay what they are."""
        values = {"instruction": instruction, "output_1": first, "output_2": second}
        return [
            {"role": role, "content": _PLACE.sub(lambda found: values[found[1]], text)}
            for role, text in self.messages
        ]


def read_choice_question(name: str) -> ChoiceQuestion:
    """Read a question from a file in AlpacaEval's form.

    Args:
        name: A path, or a file on the hub or in an installed package (see `local_file`).

    Raises:
        ConfigError: If it cannot be had, or lacks messages or a place.
    """
    try:
        content = local_file(name).read_text(encoding="utf-8")
    except (DataError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"judge.template_file cannot be read as UTF-8 text: {error}") from None
    messages = tuple((role, text.strip()) for role, text in _MESSAGE.findall(content))
    if not messages:
        raise ConfigError(
            f"judge.template_file {name} holds no messages: it needs <|im_start|>ROLE, a line break, a text and "
            "<|im_end|> for each, as AlpacaEval's prompts have"
        )
    missing = [place for place in PLACES if not any(place in text for _, text in messages)]
    if missing:
        raise ConfigError(
            f"judge.template_file {name} lacks {', '.join(missing)}: the judge would not see what it is to judge"
        )
    return ChoiceQuestion(messages, hashlib.sha256(content.encode()).hexdigest())


class TokenChoiceJudge:
    """A `Judge` that asks a chat model for one of two tokens and takes their probabilities.

    Args:
        oracle: Model, server, temperature and length of a reply.
        question: How to ask.
        tokens: The token for the output shown first, and the one for the second.
        max_attempts: How often a question is asked until one of the tokens is among the likeliest.

    Raises:
        ConfigError: If the tokens are not two different ones, or ``max_attempts`` is below 1.
    """

    def __init__(
        self, oracle: GPT4Oracle, question: ChoiceQuestion, tokens: Sequence[str], *, max_attempts: int = 1
    ) -> None:
        if len(tokens) != 2 or tokens[0] == tokens[1] or not all(tokens):
            raise ConfigError(
                f"judge.choice_tokens must be two different texts, for the first and the second output, got {tokens}"
            )
        if max_attempts < 1:
            raise ConfigError(f"judge.max_attempts must be at least 1, got {max_attempts}")
        self.oracle = oracle
        self.question = question
        self.tokens = tuple(tokens)
        self.max_attempts = max_attempts
        self.name = oracle.model

    def fingerprint(self) -> dict[str, Any]:
        """Return what the verdicts depend on; not the server's address, which may change under a model."""
        return {
            "kind": "token_choice",
            "model": self.oracle.model,
            "temperature": self.oracle.temperature,
            "max_tokens": self.oracle.max_tokens,
            "template_sha256": self.question.sha256,
            "choice_tokens": list(self.tokens),
        }

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        """Ask once; see `Judge.ask`. The verdict is invalid where neither token is among the likeliest.

        Raises:
            JudgeError: If the server gives no log-probabilities, refuses the question, sends no usable reply, or a
                passing fault outlasts the retries.
        """
        messages = self.question.filled(conversation_text(prompt.messages), first, second)
        completion = self.oracle.server.complete(
            lambda as_json: messages,
            temperature=self.oracle.temperature,
            max_tokens=self.oracle.max_tokens,
            logprobs=True,
        )
        usage = completion.usage or (0, 0)
        if not completion.tokens:
            raise JudgeError(
                "the judge's server gives no log-probabilities of its tokens, and judge.kind=token_choice judges by "
                "them: ask a server that does, or set judge.kind=openai"
            )
        # A reply of one token ends at its limit: being cut says nothing here.
        share = choice_probability(completion.tokens[0], *self.tokens)
        if share is None:
            return Reply(Verdict.INVALID, completion.text, None, *usage)
        verdict = Verdict.TIE if share == 0.5 else Verdict.A if share > 0.5 else Verdict.B
        return Reply(verdict, "", share, *usage)

    def close(self) -> None:
        """Give the server's connections back."""
        self.oracle.server.close()


def choice_probability(token: Token, first: str, second: str) -> float | None:
    """Return the probability of one label among two.

    Args:
        token: Where the label stands, with what else might have stood there.
        first: The label whose probability is asked for.
        second: The other one; a label that is not among the alternatives counts as impossible.

    Returns:
        The probability, or ``None`` where neither is among the alternatives.

    Example:
        >>> answer = Token("M", (("M", math.log(0.6)), ("m", math.log(0.2)), ("The", math.log(0.2))))
        >>> round(choice_probability(answer, "m", "M"), 9)
        0.25
    """
    known = dict(token.alternatives)
    shares = [math.exp(min(known[label], 0.0)) if label in known else 0.0 for label in (first, second)]
    total = sum(shares)
    return shares[0] / total if total > 0 else None


def token_choice_judge(
    *,
    gpt4_oracle: Mapping[str, Any],
    base_url: str | None,
    template_file: str | None,
    choice_tokens: Sequence[str],
    max_invalid_retries: int,
) -> TokenChoiceJudge:
    """Return the judge that ``judge.kind: token_choice`` means.

    Args:
        gpt4_oracle: Arguments of `GPT4Oracle`.
        base_url: Address of the server; ``None``: OpenAI's own.
        template_file: See `read_choice_question`.
        choice_tokens: See `TokenChoiceJudge`.
        max_invalid_retries: How often a question is asked again whose reply holds neither token.

    Raises:
        ConfigError: If the file cannot be had, or a setting is missing or out of range.
    """
    if template_file is None:
        raise ConfigError("judge.template_file is required while judge.kind is token_choice")
    return TokenChoiceJudge(
        GPT4Oracle(**gpt4_oracle, base_url=base_url),
        read_choice_question(template_file),
        choice_tokens,
        max_attempts=1 + max_invalid_retries,
    )
