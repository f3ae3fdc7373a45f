"""The judging stage: ask what has no answer yet, several questions at a time, within a budget.

Every reply is on the disk before its worker asks for the next, so a crash loses only replies that were under way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from tqdm.auto import tqdm

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.questions import Askable, RecordT, answers_to
from dynamic_dpo.eval.judging.spending import Budget, BudgetMeter, Spending
from dynamic_dpo.eval.judging.workers import JudgeWorkers


@dataclass(frozen=True)
class JudgingOutcome(Generic[RecordT]):
    """What is known after judging.

    Attributes:
        records: See `Answered`.
        unanswered: See `Answered`.
        stopped: Which limit of the budget ended the judging, in words; ``None`` if none did.
        num_asked: Replies paid for in this call, invalid ones included.
        num_reused: Questions whose answer was paid for before this call.
        num_identical: Questions that were ties without asking, because both outputs are the same.
        spent: What all replies in the ledger have cost, those of earlier runs included.
    """

    records: list[RecordT]
    unanswered: list[Askable[RecordT]]
    stopped: str | None
    num_asked: int
    num_reused: int
    num_identical: int
    spent: Spending


def run_judging(
    questions: Sequence[Askable[RecordT]],
    judge: Judge | Any,
    ledger: JudgeLedger[RecordT],
    *,
    concurrency: int = 4,
    budget: Budget | None = None,
    progress: bool = True,
) -> JudgingOutcome[RecordT]:
    """Get an answer to every question, asking only what the ledger does not hold.

    An invalid verdict is asked for again, ``judge.max_attempts`` times in all, and then recorded as invalid. After
    an interruption (Ctrl-C) or a fault, replies under way still land in the ledger before the error is raised.

    Args:
        questions: See `make_questions`, or others of one kind.
        judge: Who answers, whatever the questions know to ask.
        ledger: Where answers are and go.
        concurrency: Most questions under way at a time. A `BatchJudge` gets one batch at a time instead.
        budget: Limits on what the whole ledger costs; ``None`` for none.
        progress: Whether a terminal gets a progress bar.

    Returns:
        The outcome; complete where ``unanswered`` is empty.

    Raises:
        ConfigError: If ``concurrency`` is below 1, or the budget cannot be kept for want of prices or counts.
        JudgeError: If the judge cannot be had; what is answered stays answered.
    """
    if concurrency < 1:
        raise ConfigError(f"judge.concurrency must be at least 1, got {concurrency}")
    fingerprint = judge.fingerprint()
    by_key: dict[str, Askable[RecordT]] = {}
    for question in questions:
        by_key.setdefault(question.key(fingerprint), question)
    reused = {key for key in by_key if ledger.get(key) is not None}
    todo = {key: question for key, question in by_key.items() if key not in reused}
    for key, question in todo.items():
        known = question.known_reply()
        if known is not None:
            ledger.append(question.record(key, judge.name, known, attempts=0))
    meter = BudgetMeter(budget or Budget(), fingerprint.get("model"), ledger.spent(), _dearest(ledger))
    # disable=None shows the bar on a terminal only.
    with tqdm(total=len(todo), desc="Judging", unit="question", disable=None if progress else True) as bar:
        workers = JudgeWorkers(judge, ledger, meter, bar)
        workers.run(
            [(key, question) for key, question in todo.items() if ledger.get(key) is None], concurrency
        )
    answered = answers_to(questions, ledger.get, judge=judge.name, fingerprint=fingerprint)
    asked_about = [question for question in questions if question.known_reply() is None]
    return JudgingOutcome(
        records=answered.records,
        unanswered=answered.unanswered,
        stopped=meter.stopped,
        num_asked=workers.num_asked,
        num_reused=sum(question.key(fingerprint) in reused for question in asked_about),
        num_identical=len(questions) - len(asked_about),
        spent=ledger.spent(),
    )


def _dearest(ledger: JudgeLedger[RecordT]) -> Spending | None:
    """Return the dearest reply field by field; several attempts at one question count as their mean."""
    means = [
        (1, row.prompt_tokens / row.calls, row.completion_tokens / row.calls, row.cost / row.calls)
        for row in ledger.replies()
        if row.calls
    ]
    if not means:
        return None
    _, prompt_tokens, completion_tokens, cost = (max(column) for column in zip(*means, strict=True))
    return Spending(1, math.ceil(prompt_tokens), math.ceil(completion_tokens), cost)
