"""What a judge is: something with a name and a fingerprint that compares two outputs in the order shown.

What scores one output at a time (a reward model, a function) becomes a judge through `PointwiseJudge`. Which
questions are asked, in which orders and for how much money is decided in ``eval.judging``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import Message, PromptRecord


class Reply(NamedTuple):
    """One answer of a judge to one question, paid once.

    Attributes:
        verdict: ``A`` for the output shown first, ``B`` for the second, a tie, or invalid.
        reason: The judge's words before the verdict; its whole reply where the verdict is invalid.
        prob_first: Probability of A from the verdict token's log-probabilities, where asked for.
        prompt_tokens: Tokens of the question; 0 where nobody counts them.
        completion_tokens: Tokens of the reply; 0 where nobody counts them.
        strong: Whether the judge called the better output much better, where its labels tell that apart.
        prob_tie: Probability of a tie, where ``prob_first`` is known and a tie may be called.
        grade: The grade of a single answer, where one was asked for; the verdict is then invalid and says nothing.
    """

    verdict: Verdict
    reason: str = ""
    prob_first: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    strong: bool = False
    prob_tie: float = 0.0
    grade: float | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it holds what was asked for: a verdict, or a grade."""
        return self.grade is not None or self.verdict is not Verdict.INVALID


class ShownPair(NamedTuple):
    """Two outputs for one prompt as a judge sees them: in an order, and without their models' names."""

    prompt: PromptRecord
    first: str
    second: str


@runtime_checkable
class Judge(Protocol):
    """Compares two outputs, one paid reply at a time; called from several threads at once.

    Attributes:
        name: What reports call it.
        max_attempts: How often a question is asked until its verdict is valid, at least 1.
    """

    name: str
    max_attempts: int

    def fingerprint(self) -> dict[str, Any]:
        """Return, as JSON types, all that its verdicts depend on beside the question.

        An entry ``model`` is the name under which its replies are priced; a judge without one costs nothing.
        """
        ...

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        """Ask once.

        Args:
            prompt: The conversation to be answered.
            first: The output shown as A.
            second: The output shown as B.
            attempt: How many invalid replies this question has had.

        Returns:
            The reply, with an invalid verdict where it holds none.

        Raises:
            JudgeError: If no reply can be had.
        """
        ...


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that is faster on several pairs at once, such as a model on a GPU.

    Attributes:
        batch_size: How many pairs to hand it together.
    """

    batch_size: int

    def ask_many(self, pairs: Sequence[ShownPair]) -> list[Reply]:
        """Answer about several pairs, in their order."""
        ...


class Scorer(Protocol):
    """Gives one output a number; higher is better. Attributes as in `BatchJudge`."""

    name: str
    batch_size: int

    def fingerprint(self) -> dict[str, Any]:
        """Return, as JSON types, all that its scores depend on beside prompt and output."""
        ...

    def score_many(self, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
        """Return one score for every prompt and output, in their order."""
        ...


def checked_scores(scorer: Scorer, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
    """Return what a scorer gives to outputs, in their order.

    Raises:
        JudgeError: If it gives another number of scores than asked for, or one that is not finite.
    """
    values = scorer.score_many(items)
    if len(values) != len(items):
        raise JudgeError(
            f"{scorer.name} gave {len(values)} scores for {len(items)} outputs; it must give one each"
        )
    for value, (prompt, text) in zip(values, items, strict=True):
        if not math.isfinite(value):
            raise JudgeError(
                f"{scorer.name} gave the score {value} to the output {text[:80]!r} of prompt {prompt.id}; "
                "a score must be a finite number"
            )
    return values


class PointwiseJudge:
    """Compare two outputs by the scores that each gets alone.

    Args:
        scorer: What scores an output.
        tie_tolerance: Largest difference of two scores that is a tie, in the scorer's own unit, at least 0.

    Raises:
        ConfigError: If the tolerance is negative or not a number.

    Example:
        >>> class Length:
        ...     name, batch_size = "length", 8
        ...     def fingerprint(self):
        ...         return {"kind": "length"}
        ...     def score_many(self, items):
        ...         return [float(len(text)) for _, text in items]
        >>> prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
        >>> PointwiseJudge(Length(), tie_tolerance=1.0).ask(prompt, "Hello.", "Hey").reason
        'score of A 6, of B 3'
    """

    max_attempts = 1

    def __init__(self, scorer: Scorer, *, tie_tolerance: float = 0.0) -> None:
        if not (tie_tolerance >= 0 and math.isfinite(tie_tolerance)):
            raise ConfigError(f"judge.tie_tolerance must be at least 0, got {tie_tolerance}")
        self.scorer = scorer
        self.name = scorer.name
        self.tie_tolerance = tie_tolerance
        self.batch_size = scorer.batch_size
        # Neither models nor users' functions promise to bear several threads.
        self._lock = threading.Lock()

    def fingerprint(self) -> dict[str, Any]:
        """Return the scorer's fingerprint and the tolerance."""
        return {**self.scorer.fingerprint(), "tie_tolerance": self.tie_tolerance}

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        """Compare two outputs; a second attempt would say the same."""
        return self.ask_many([ShownPair(prompt, first, second)])[0]

    def ask_many(self, pairs: Sequence[ShownPair]) -> list[Reply]:
        """Compare several pairs; an output that occurs in several of them, as in both orders, is scored once.

        Raises:
            JudgeError: If the scorer gives another number of scores than asked for, or one that is not finite.
        """
        items: dict[tuple[str, str], tuple[PromptRecord, str]] = {}
        for prompt, *texts in pairs:
            items.update({(prompt.id, text): (prompt, text) for text in texts})
        with self._lock:
            values = checked_scores(self.scorer, list(items.values()))
        scores = dict(zip(items, values, strict=True))
        return [
            self._compare(scores[prompt.id, first], scores[prompt.id, second])
            for prompt, first, second in pairs
        ]

    def _compare(self, first: float, second: float) -> Reply:
        if abs(first - second) <= self.tie_tolerance:
            verdict = Verdict.TIE
        else:
            verdict = Verdict.A if first > second else Verdict.B
        return Reply(verdict, reason=f"score of A {first:.6g}, of B {second:.6g}")


def conversation_text(messages: Sequence[Message]) -> str:
    r"""Return a conversation as a judge reads it: a single user message as it is, several turns with their roles.

    >>> conversation_text([{"role": "user", "content": "Hi"}])
    'Hi'
    >>> conversation_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    'User: Hi\n\nAssistant: Hello'
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
