"""A chat model that judges conversations: grades of single answers, and comparisons of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.base import Reply
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.labels import THREE_LABELS, read_label
from dynamic_dpo.eval.judges.quotations import as_written, own_words
from dynamic_dpo.eval.judges.turns.grades import read_grade
from dynamic_dpo.eval.judges.turns.templates import Conversation, TurnsTemplate
from dynamic_dpo.eval.judges.verdict import Verdict


class TurnsJudge:
    """Ask a chat model about conversations; several threads may use one.

    Args:
        oracle: Model, server, temperature and length of a reply.
        template: How to ask.
        max_attempts: How often a question is asked until its reply can be read.

    Raises:
        ConfigError: If ``max_attempts`` is below 1.

    Attributes:
        name: What reports call it: the model's name.
    """

    def __init__(self, oracle: GPT4Oracle, template: TurnsTemplate, *, max_attempts: int = 3) -> None:
        if max_attempts < 1:
            raise ConfigError(f"judge.max_attempts must be at least 1, got {max_attempts}")
        self.oracle = oracle
        self.template = template
        self.max_attempts = max_attempts
        self.name = oracle.model

    def fingerprint(self) -> dict[str, Any]:
        """Return what its answers depend on beside the question; not the server's address."""
        return {
            "kind": "turns",
            "model": self.oracle.model,
            "temperature": self.oracle.temperature,
            "max_tokens": self.oracle.max_tokens,
            "template": self.template.version,
            "template_sha256": self.template.sha256,
        }

    def grade(self, shown: Conversation, *, attempt: int = 0) -> Reply:
        """Ask once for a grade of the last answer.

        Args:
            shown: The conversation up to it.
            attempt: How many invalid replies this question has had.

        Raises:
            JudgeError: If no reply can be had.
            ConfigError: If a user's file has no question for it.
        """
        text, usage, cut = self._ask(lambda: self.template.grading(shown, attempt=attempt))
        texts = (*shown.questions, *shown.answers)
        words = own_words(text, texts)
        found = read_grade(None if cut else words)
        reason = text if found.grade is None else as_written(found.reason, words, text)
        return Reply(Verdict.INVALID, reason, None, *usage, grade=found.grade)

    def compare(self, first: Conversation, second: Conversation, *, attempt: int = 0) -> Reply:
        """Ask once which of two last answers is better; as for `grade`."""
        text, usage, cut = self._ask(lambda: self.template.comparing(first, second, attempt=attempt))
        texts = (*first.questions, *first.answers, *second.answers)
        words = own_words(text, texts)
        found = read_label(None if cut else words, THREE_LABELS)
        reason = text if found.verdict is Verdict.INVALID else as_written(found.reason, words, text)
        return Reply(found.verdict, reason, None, *usage)

    def close(self) -> None:
        """Give the server's connections back."""
        self.oracle.server.close()

    def _ask(self, messages: Callable[[], list[dict[str, str]]]) -> tuple[str, tuple[int, int], bool]:
        asked = messages()
        completion = self.oracle.server.complete(
            lambda as_json: asked, temperature=self.oracle.temperature, max_tokens=self.oracle.max_tokens
        )
        # A reply cut at the limit may have been going on to another grade.
        return completion.text, completion.usage or (0, 0), completion.cut
