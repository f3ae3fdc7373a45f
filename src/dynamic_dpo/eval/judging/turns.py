"""The questions about conversations: a grade for each answer, or two models' conversations side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dynamic_dpo.eval.judges.base import Reply
from dynamic_dpo.eval.judges.turns.chat import TurnsJudge
from dynamic_dpo.eval.judges.turns.templates import Conversation
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.judging.questions import IDENTICAL_REASON
from dynamic_dpo.eval.prompts.turns import references_of, turns_of
from dynamic_dpo.eval.records import GradeRecord, JudgementRecord, PromptRecord
from dynamic_dpo.utils.hashing import content_hash


@dataclass(frozen=True)
class GradeQuestion:
    """How good one model's answer to one turn is.

    Attributes:
        prompt: The prompt.
        turn: Which turn, from 0.
        model: Whose answer.
        shown: What the judge sees: the conversation up to that answer, without the model's name.
    """

    prompt: PromptRecord
    turn: int
    model: str
    shown: Conversation

    @property
    def prompt_id(self) -> str:
        """Which prompt it is about."""
        return self.prompt.id

    def key(self, fingerprint: Mapping[str, Any]) -> str:
        """Return the name of its grade by a judge with this fingerprint; models' names are no part of it."""
        return content_hash({"graded": [list(part) for part in self.shown], "judge": dict(fingerprint)})

    def ask(self, judge: TurnsJudge, attempt: int) -> Reply:
        """Ask once."""
        return judge.grade(self.shown, attempt=attempt)

    def known_reply(self) -> Reply | None:
        """Return ``None``: every answer is graded."""
        return None

    def record(self, key: str, judge: str, reply: Reply, *, attempts: int) -> GradeRecord:
        """Return a grade as it is kept, before its cost is filled in."""
        return GradeRecord(
            key, self.prompt.id, self.turn, judge, self.model, reply.grade, reply.reason, attempts
        )

    def renamed(self, answer: GradeRecord, judge: str) -> GradeRecord:
        """Return a grade with this question's names."""
        return replace(answer, id=self.prompt.id, turn=self.turn, judge=judge, model=self.model)


@dataclass(frozen=True)
class TurnPairQuestion:
    """Whose answer to one turn is better, in the order in which the judge sees the two conversations.

    Attributes:
        prompt: The prompt.
        turn: Which turn, from 0.
        first: The model shown as A.
        second: The model shown as B.
        first_shown: Its conversation up to that turn.
        second_shown: The other's.
    """

    prompt: PromptRecord
    turn: int
    first: str
    second: str
    first_shown: Conversation
    second_shown: Conversation

    @property
    def prompt_id(self) -> str:
        """Which prompt it is about."""
        return self.prompt.id

    def key(self, fingerprint: Mapping[str, Any]) -> str:
        """Return the name of its answer by a judge with this fingerprint; models' names are no part of it."""
        shown = [[list(part) for part in one] for one in (self.first_shown, self.second_shown)]
        return content_hash({"compared": shown, "judge": dict(fingerprint)})

    def ask(self, judge: TurnsJudge, attempt: int) -> Reply:
        """Ask once."""
        return judge.compare(self.first_shown, self.second_shown, attempt=attempt)

    def known_reply(self) -> Reply | None:
        """Return a tie where both conversations are the same."""
        is_identical = self.first_shown == self.second_shown
        return Reply(Verdict.TIE, IDENTICAL_REASON) if is_identical else None

    def record(self, key: str, judge: str, reply: Reply, *, attempts: int) -> JudgementRecord:
        """Return an answer as it is kept, before its cost is filled in: a turn is a sample of its prompt.

        What is computed from it so keeps the turns of a conversation together.
        """
        return JudgementRecord(
            key,
            self.prompt.id,
            self.turn,
            judge,
            self.first,
            self.second,
            str(reply.verdict),
            reply.reason,
            attempts=attempts,
        )

    def renamed(self, answer: JudgementRecord, judge: str) -> JudgementRecord:
        """Return an answer with this question's names."""
        return replace(
            answer,
            id=self.prompt.id,
            sample=self.turn,
            judge=judge,
            first=self.first,
            second=self.second,
        )


def grade_questions(
    prompts: Sequence[PromptRecord], answers: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[GradeQuestion]:
    """Return a question for every answer of every model.

    Args:
        prompts: The prompts.
        answers: Model to prompt id to its answers, turn by turn.
    """
    return [
        GradeQuestion(prompt, turn, model, shown_up_to(prompt, turn, said[prompt.id]))
        for prompt in prompts
        for model, said in answers.items()
        for turn in range(len(said.get(prompt.id, ())))
    ]


def turn_pair_questions(
    prompts: Sequence[PromptRecord],
    answers: Mapping[str, Mapping[str, Sequence[str]]],
    pairs: Sequence[tuple[str, str]],
) -> list[TurnPairQuestion]:
    """Return every turn that both models of a pair have answered, in both orders.

    Args:
        prompts: The prompts.
        answers: As for `grade_questions`.
        pairs: Which models are compared.
    """
    questions = []
    for prompt in prompts:
        for left, right in pairs:
            said = {name: answers[name].get(prompt.id, ()) for name in (left, right)}
            for turn in range(min(len(texts) for texts in said.values())):
                shown = {name: shown_up_to(prompt, turn, texts) for name, texts in said.items()}
                for first, second in ((left, right), (right, left)):
                    questions.append(
                        TurnPairQuestion(prompt, turn, first, second, shown[first], shown[second])
                    )
    return questions


def shown_up_to(prompt: PromptRecord, turn: int, answers: Sequence[str]) -> Conversation:
    """Return a conversation as a judge sees it, up to the answer to one turn."""
    end = turn + 1
    return Conversation(
        tuple(turns_of(prompt)[:end]), tuple(answers[:end]), tuple(references_of(prompt, end))
    )
