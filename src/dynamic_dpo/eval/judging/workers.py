"""The threads of the judging stage: each takes a question, asks, and has the reply on the disk before the next.

At a limit of the budget they admit nothing more; how they end together is in `dynamic_dpo.utils.parallel.workers`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, cast

from dynamic_dpo.errors import JudgeError
from dynamic_dpo.eval.judges.base import BatchJudge, Judge, Reply
from dynamic_dpo.eval.judging.ledger import InvalidReply, JudgeLedger, total
from dynamic_dpo.eval.judging.questions import Askable, Question, RecordT
from dynamic_dpo.eval.judging.spending import BudgetMeter, Spending
from dynamic_dpo.utils.parallel.workers import Workers


class JudgeWorkers(Generic[RecordT]):
    """Threads that ask a judge until every question is answered, the budget ends, or one of them fails.

    Args:
        judge: Who answers, whatever the questions know to ask; a `BatchJudge` gets one batch at a time.
        ledger: Where the replies go.
        meter: Admits every call.
        bar: A progress bar, moved by one for every answer.

    Attributes:
        num_asked: Replies so far, invalid ones included.
    """

    def __init__(
        self, judge: Judge | Any, ledger: JudgeLedger[RecordT], meter: BudgetMeter, bar: Any
    ) -> None:
        self.judge, self.ledger, self.meter, self.bar = judge, ledger, meter, bar
        self.num_asked = 0
        self._lock = threading.Lock()

    def run(self, todo: Sequence[tuple[str, Askable[RecordT]]], concurrency: int) -> None:
        """Get an answer to every question; several threads work, this one waits.

        Args:
            todo: Keys and questions.
            concurrency: Most questions under way at a time.

        Raises:
            JudgeError: The first that a thread met, after the replies under way have landed.
        """
        if isinstance(self.judge, BatchJudge):
            size = self.judge.batch_size
            batches = [todo[start : start + size] for start in range(0, len(todo), size)]
            Workers(self._answer_batch, on_stop=self.meter.close).run(batches, 1)
        else:
            Workers(self._answer, on_stop=self.meter.close).run(todo, concurrency)

    def _answer(self, asked: tuple[str, Askable[RecordT]]) -> None:
        key, question = asked
        earlier = self.ledger.invalid_replies(key)
        while self.meter.admit():
            try:
                reply = question.ask(self.judge, len(earlier))
            except JudgeError as error:
                self.meter.withdraw()
                raise JudgeError(f"{error} (asked about prompt {question.prompt_id})") from None
            except BaseException:
                self.meter.withdraw()
                raise
            if reply.is_usable or len(earlier) + 1 >= self.judge.max_attempts:
                self._land(key, question, reply, earlier)
                return
            cost = self.meter.cost(reply.prompt_tokens, reply.completion_tokens)
            tokens = (reply.prompt_tokens, reply.completion_tokens)
            invalid = InvalidReply(key, len(earlier), reply.reason, *tokens, cost)
            self.ledger.append_invalid(invalid)
            earlier = [*earlier, invalid]
            self._count(reply)

    def _answer_batch(self, batch: Sequence[tuple[str, Askable[RecordT]]]) -> None:
        assert isinstance(self.judge, BatchJudge)
        while batch and (admitted := self.meter.admit_up_to(len(batch))):
            asked, batch = batch[:admitted], batch[admitted:]
            replies = self.judge.ask_many([cast("Question", question).shown for _, question in asked])
            for (key, question), reply in zip(asked, replies, strict=True):
                self._land(key, question, reply, [])

    def _land(
        self, key: str, question: Askable[RecordT], reply: Reply, earlier: Sequence[InvalidReply]
    ) -> None:
        cost = self.meter.cost(reply.prompt_tokens, reply.completion_tokens)
        own = Spending(1, reply.prompt_tokens, reply.completion_tokens, cost)
        whole = total([own, *(Spending(1, r.prompt_tokens, r.completion_tokens, r.cost) for r in earlier)])
        record = question.record(key, self.judge.name, reply, attempts=whole.calls)
        self.ledger.append(
            replace(
                record,
                prompt_tokens=whole.prompt_tokens,
                completion_tokens=whole.completion_tokens,
                cost=whole.cost,
            )
        )
        self._count(reply)
        with self._lock:
            self.bar.update(1)

    def _count(self, reply: Reply) -> None:
        with self._lock:
            self.num_asked += 1
        self.meter.settle(reply.prompt_tokens, reply.completion_tokens)
