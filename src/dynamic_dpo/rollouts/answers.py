"""One answer to a prompt on its way into a pair: what was written, by whom, and what it was found to be worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynamic_dpo.eval.records import OutputRecord, PromptRecord

POLICY = "policy"
"""The model whose answers pairs are made of."""

WEAK = "weak"
"""A second model, whose answers are taken for worse ones."""

REFERENCE = "reference"
"""The writer of a data set's own answers."""


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt.

    Attributes:
        model: Who wrote it: ``policy``, ``weak``, or ``reference`` for the data set's own.
        sample: Which of the writer's answers to the prompt this is, from 0.
        text: What was written, without its stop token.
        finished: Whether the model stopped by itself; ``False`` means cut off.
        finish_reason: Why it ended, in the engine's words; ``None`` where that was not kept.
        num_tokens: Length in the writer's own tokens, without the stop token; 0 where that is not known.
        token_ids: The ids that were sampled, the stop token included where it is known; ``None`` where nobody gave
            them.
        score: What pairs are made by, higher is better; NaN before it is labelled.
        scores: Each scorer's own score, by its name.
    """

    model: str
    sample: int
    text: str
    finished: bool = True
    finish_reason: str | None = None
    num_tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    score: float = math.nan
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called among the prompt's answers.

        >>> Answer("policy", 3, "Hello").name
        'policy#3'
        """
        return f"{self.model}#{self.sample}"

    @classmethod
    def of(
        cls, output: OutputRecord, *, token_ids: list[int] | None = None, stop_id: int | None = None
    ) -> Answer:
        """Return an output as an answer.

        Args:
            output: The output.
            token_ids: Its ids; empty where nobody gave them.
            stop_id: The token by which it stopped, where that is known.
        """
        ids = tuple(token_ids or ()) + (() if stop_id is None else (stop_id,))
        return cls(
            output.model,
            output.sample,
            output.text,
            output.finished,
            output.finish_reason,
            output.num_tokens,
            ids if token_ids else None,
        )


def reference_answer(prompt: PromptRecord) -> Answer | None:
    """Return the data set's own answer to a prompt, ``None`` where it has none."""
    return None if prompt.reference is None else Answer(REFERENCE, 0, prompt.reference)
