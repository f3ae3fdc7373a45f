"""Which comparisons a judge is asked for, and which of them have an answer.

A question is two models' outputs for one prompt in one order, or whatever else is `Askable`. It has a key, a hash of
all that its answer depends on, and is never found by its place in a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.judges.base import Reply, ShownPair
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import GradeRecord, JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.utils.hashing import content_hash

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    RecordT = TypeVar("RecordT", bound=JudgementRecord | GradeRecord, default=JudgementRecord)
else:
    from typing import TypeVar

    # Python 3.11 knows no defaults of type variables.
    RecordT = TypeVar("RecordT")

IDENTICAL_REASON = "the two outputs are identical; the judge was not asked"


class Askable(Protocol[RecordT]):
    """What the stage judge can ask: it knows its judge's way to be asked, and the record of an answer."""

    @property
    def prompt_id(self) -> str:
        """Which prompt it is about, for messages."""
        ...

    def key(self, fingerprint: Mapping[str, Any]) -> str:
        """Return the name of its answer by a judge with this fingerprint."""
        ...

    def ask(self, judge: Any, attempt: int) -> Reply:
        """Ask once; see `Judge.ask`."""
        ...

    def known_reply(self) -> Reply | None:
        """Return the answer where no judge need be asked; ``None`` where one must."""
        ...

    def record(self, key: str, judge: str, reply: Reply, *, attempts: int) -> RecordT:
        """Return an answer as it is kept, before its cost is filled in."""
        ...

    def renamed(self, answer: RecordT, judge: str) -> RecordT:
        """Return an answer, given under whatever names, with those of this question."""
        ...


@dataclass(frozen=True)
class Question:
    """Two outputs for one prompt in the order in which the judge sees them.

    Attributes:
        prompt: The conversation to be answered.
        sample: The outputs' sample number.
        first: The model whose output stands first (A).
        second: The model whose output stands second (B).
        first_text: Its output.
        second_text: The other's.
    """

    prompt: PromptRecord
    sample: int
    first: str
    second: str
    first_text: str
    second_text: str

    @property
    def shown(self) -> ShownPair:
        """What the judge sees: no model's name."""
        return ShownPair(self.prompt, self.first_text, self.second_text)

    @property
    def is_identical(self) -> bool:
        """Whether both outputs are the same text: a tie that no judge need be asked about."""
        return self.first_text == self.second_text

    @property
    def prompt_id(self) -> str:
        """Which prompt it is about."""
        return self.prompt.id

    def ask(self, judge: Any, attempt: int) -> Reply:
        """Ask a `Judge` once."""
        reply: Reply = judge.ask(self.prompt, self.first_text, self.second_text, attempt=attempt)
        return reply

    def known_reply(self) -> Reply | None:
        """Return a tie where both outputs are the same."""
        return Reply(Verdict.TIE, IDENTICAL_REASON) if self.is_identical else None

    def record(self, key: str, judge: str, reply: Reply, *, attempts: int) -> JudgementRecord:
        """Return an answer as it is kept, before its cost is filled in."""
        return JudgementRecord(
            key=key,
            id=self.prompt.id,
            sample=self.sample,
            judge=judge,
            first=self.first,
            second=self.second,
            verdict=str(reply.verdict),
            reason=reply.reason,
            prob_first=reply.prob_first,
            attempts=attempts,
            strong=reply.strong,
            prob_tie=reply.prob_tie,
        )

    def renamed(self, answer: JudgementRecord, judge: str) -> JudgementRecord:
        """Return an answer with this question's names."""
        return replace(
            answer,
            id=self.prompt.id,
            sample=self.sample,
            judge=judge,
            first=self.first,
            second=self.second,
        )

    def key(self, fingerprint: Mapping[str, Any]) -> str:
        """Return the name of its answer by a judge with this fingerprint.

        Models' names are no part of it: equal texts in equal order are one question, paid once.
        """
        return content_hash(
            {
                "prompt": self.prompt.messages,
                "first": self.first_text,
                "second": self.second_text,
                "judge": dict(fingerprint),
            }
        )


class Questions(NamedTuple):
    """What can be asked, and what cannot because an output is missing.

    Attributes:
        questions: In the order of prompts, model pairs, samples, orders.
        missing: Prompt id and model of every output that a comparison lacks.
    """

    questions: list[Question]
    missing: list[tuple[str, str]]


@dataclass(frozen=True)
class Answered(Generic[RecordT]):
    """What questions have come to.

    Attributes:
        records: One for every answered question, in the questions' order and with their models' names. Where
            several questions share one answer, the first carries its cost and the others none.
        unanswered: The questions without an answer, in their order.
    """

    records: list[RecordT]
    unanswered: list[Askable[RecordT]]


def make_questions(
    prompts: Sequence[PromptRecord],
    outputs: Sequence[OutputRecord],
    pairs: Sequence[tuple[str, str]],
    *,
    both_orders: bool = True,
    seed: int = 0,
) -> Questions:
    """Pair two models' outputs of equal sample number, prompt by prompt.

    A model with a single output for a prompt (a reference, an imported baseline) meets every sample of the other.

    Args:
        prompts: The prompts to compare on.
        outputs: The models' outputs, in any order.
        pairs: Names of the models to compare, each pair once.
        both_orders: Whether every comparison is asked as A, B and as B, A; else in one order, drawn by a hash of
            seed, prompt, sample and models.
        seed: Another seed, other single orders.

    Returns:
        The questions, and the outputs that are missing.

    Raises:
        DataError: If a pair names one model twice or a model without any output.

    Example:
        >>> prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
        >>> texts = {"old": "Yes?", "new": "Hello!"}
        >>> outputs = [OutputRecord(prompt.id, model, 0, text, 2, True) for model, text in texts.items()]
        >>> [(q.first, q.second) for q in make_questions([prompt], outputs, [("new", "old")]).questions]
        [('new', 'old'), ('old', 'new')]
    """
    texts: dict[tuple[str, str], dict[int, str]] = {}
    for output in outputs:
        texts.setdefault((output.id, output.model), {})[output.sample] = output.text
    known = {output.model for output in outputs}
    for left, right in pairs:
        if left == right or not {left, right} <= known:
            raise DataError(
                f"cannot compare {left!r} with {right!r}: two different models with outputs are needed; "
                f"outputs exist of {', '.join(sorted(known)) or 'no model'}"
            )
    questions: list[Question] = []
    missing: dict[tuple[str, str], None] = {}
    for prompt in prompts:
        for left, right in pairs:
            own, other = texts.get((prompt.id, left), {}), texts.get((prompt.id, right), {})
            missing.update(
                {(prompt.id, name): None for name, found in ((left, own), (right, other)) if not found}
            )
            for sample in sorted({*own, *other}):
                left_text, right_text = _of_sample(own, sample), _of_sample(other, sample)
                if left_text is None or right_text is None:
                    lacking = left if left_text is None else right
                    missing[prompt.id, lacking] = None
                    continue
                forward = Question(prompt, sample, left, right, left_text, right_text)
                backward = Question(prompt, sample, right, left, right_text, left_text)
                if both_orders:
                    questions += [forward, backward]
                else:
                    item = content_hash([seed, prompt.id, sample, left, right])
                    questions.append(backward if int(item, 16) & 1 else forward)
    return Questions(questions, list(missing))


def answers_to(
    questions: Sequence[Askable[RecordT]],
    find: Callable[[str], RecordT | None],
    *,
    judge: str,
    fingerprint: Mapping[str, Any],
) -> Answered[RecordT]:
    """Return the answers to questions, wherever they were given and under whatever names.

    Args:
        questions: The questions.
        find: Returns the answer of a key, or ``None``.
        judge: The judge's name of now.
        fingerprint: All that its verdicts depend on.
    """
    records: list[RecordT] = []
    unanswered: list[Askable[RecordT]] = []
    paid: set[str] = set()
    for question in questions:
        answer = find(question.key(fingerprint))
        if answer is None:
            unanswered.append(question)
            continue
        record = question.renamed(answer, judge)
        if record.key in paid:
            record = replace(record, attempts=0, prompt_tokens=0, completion_tokens=0, cost=0.0)
        paid.add(record.key)
        records.append(record)
    return Answered(records, unanswered)


def _of_sample(texts: Mapping[int, str], sample: int) -> str | None:
    return next(iter(texts.values())) if len(texts) == 1 else texts.get(sample)
