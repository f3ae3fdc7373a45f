"""The records that the stages of an evaluation hand to each other: prompts, outputs, judgements.

Each is one JSON line of a file. A record is found by hashes of content, never by its place in a file, so that a
changed seed, order or sample can attach nothing to the wrong prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.hashing import content_hash

Message = dict[str, str]


class _Record:
    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the record of what `to_json` gave; keys of later versions are left out.

        Raises:
            DataError: If a key is missing.
        """
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        try:
            return cls(**{key: item for key, item in value.items() if key in known})
        except TypeError as error:
            raise DataError(f"this line is no {cls.__name__}: {error}; given keys: {sorted(value)}") from None


@dataclass(frozen=True)
class PromptRecord(_Record):
    """One prompt of an evaluation.

    Attributes:
        id: `content_hash` of the messages; equal prompts are one prompt.
        messages: The conversation up to and including the turn to be answered.
        reference: A known answer, such as a human summary, or ``None``.
        category: A label for the breakdown of results, or ``None``.
        meta: Fields copied from the source row.
    """

    id: str
    messages: list[Message]
    reference: str | None = None
    category: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: list[Message], **rest: Any) -> Self:
        """Return the record of a conversation, its id made from its content."""
        return cls(id=content_hash(messages), messages=messages, **rest)


@dataclass(frozen=True)
class OutputRecord(_Record):
    """One output of one model.

    Attributes:
        id: The prompt's id.
        model: The model's name in the evaluation file.
        sample: Which output of that prompt this is, from 0.
        text: The output without its stop token.
        num_tokens: Its length in the model's own tokens; 0 where that is not known (imported outputs).
        finished: Whether the model stopped by itself; ``False`` means cut at the limit.
        flags: What the lint found: see `dynamic_dpo.eval.lint`.
        finish_reason: Why it ended, in the engine's words: ``stop``, ``length``, on a server also others such as
            ``content_filter``; ``None`` where that was not kept (version 0.2, imported outputs).
    """

    id: str
    model: str
    sample: int
    text: str
    num_tokens: int
    finished: bool
    flags: list[str] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(frozen=True)
class JudgementRecord(_Record):
    """One answer of one judge to one question: two outputs in one order.

    Attributes:
        key: Hash of prompt, outputs in the order shown, judge, template and parameters: what is never paid twice.
        id: The prompt's id.
        sample: The outputs' sample number.
        judge: The judge's name.
        first: The model whose output stood first (A).
        second: The model whose output stood second (B).
        verdict: ``A``, ``B``, ``tie`` or ``invalid``, as the judge saw the outputs.
        reason: The judge's words before the verdict; empty where it gives none.
        prob_first: Probability of A from the verdict token's log-probabilities, where asked for.
        attempts: Questions asked until this verdict, those with an invalid reply included.
        prompt_tokens: Tokens of all attempts; 0 where the judge counts none.
        completion_tokens: The same of the replies.
        cost: Money by the price table; 0 without one.
        strong: Whether the judge called the winner much better, where its labels tell that apart.
        prob_tie: Probability of a tie, where ``prob_first`` is known and the judge may call one.
        meta: Fields of an imported judgement that have no place here, kept for its way out.
    """

    key: str
    id: str
    sample: int
    judge: str
    first: str
    second: str
    verdict: str
    reason: str = ""
    prob_first: float | None = None
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    strong: bool = False
    prob_tie: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types; what only imported judgements have is left out of others."""
        value = super().to_json()
        return value if self.meta else {key: item for key, item in value.items() if key != "meta"}

    def preference(self, model: str) -> float | None:
        """Return how surely the judge preferred a model: 1 for sure, 0 the other one for sure, a tie counts half.

        Args:
            model: ``first`` or ``second``.

        Returns:
            By the verdict token's probabilities where they are known, else by the verdict; ``None`` for an invalid
            one.

        Example:
            >>> JudgementRecord("k", "p", 0, "j", "x", "y", "B", prob_first=0.25, prob_tie=0.125).preference("y")
            0.6875
            >>> JudgementRecord("k", "p", 0, "j", "x", "y", "B").preference("y")
            1.0
        """
        if self.verdict == "invalid":
            return None
        if self.prob_first is None:
            first = {"A": 1.0, "B": 0.0}.get(self.verdict, 0.5)
        else:
            first = self.prob_first + self.prob_tie / 2
        return first if model == self.first else 1.0 - first

    @property
    def winner(self) -> str | None:
        """The model preferred; ``None`` for a tie or an invalid verdict.

        >>> JudgementRecord("k", "p", 0, "j", "x", "y", "B").winner
        'y'
        """
        return {"A": self.first, "B": self.second}.get(self.verdict)


@dataclass(frozen=True)
class GradeRecord(_Record):
    """One answer of one judge to the question how good one model's answer to one turn is.

    Attributes:
        key: Hash of the conversation, its references, judge, template and parameters: what is never paid twice.
        id: The prompt's id.
        turn: Which turn's answer was graded, from 0.
        judge: The judge's name.
        model: Whose answer it is.
        grade: The grade; ``None`` where no reply held one.
        reason: The judge's words before the grade; its whole reply where there is none.
        attempts: Questions asked until then.
        prompt_tokens: Tokens of all attempts; 0 where the judge counts none.
        completion_tokens: The same of the replies.
        cost: Money by the price table; 0 without one.
    """

    key: str
    id: str
    turn: int
    judge: str
    model: str
    grade: float | None
    reason: str = ""
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
