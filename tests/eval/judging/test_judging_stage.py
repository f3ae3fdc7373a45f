"""The judging stage with judges whose answers are known: orders, resuming, budgets, interruptions."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, DataError, JudgeError
from dynamic_dpo.eval.judges.base import PointwiseJudge, Reply, ShownPair, conversation_text
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.judging.ledger import JudgeLedger, read_ledger
from dynamic_dpo.eval.judging.questions import Question, make_questions
from dynamic_dpo.eval.judging.spending import Budget, BudgetMeter, Price, Spending
from dynamic_dpo.eval.judging.stage import JudgingOutcome, run_judging
from dynamic_dpo.eval.records import OutputRecord, PromptRecord


class SimulatedJudge:
    """Answers from a hash of the question: A with a known share, invalid with another; counts what it is asked."""

    def __init__(
        self, *, win: float = 0.7, invalid: float = 0.0, max_attempts: int = 3, wait: float = 0.0
    ) -> None:
        self.name, self.max_attempts = "simulated", max_attempts
        self.win, self.invalid, self.wait = win, invalid, wait
        self.asked: list[tuple[str, str, str, int]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "sim-1"}

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        with self._lock:
            self.asked.append((prompt.id, first, second, attempt))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        if self.wait:
            time.sleep(self.wait)
        with self._lock:
            self._at_once -= 1
        if share("invalid", prompt.id, first, second, attempt) < self.invalid:
            return Reply(Verdict.INVALID, "I cannot say.", None, 100, 10)
        # The better text is the one of the model "good"; it wins with the known share.
        good_first = first.startswith("good")
        good_wins = share("win", prompt.id, first, second) < self.win
        return Reply(Verdict.A if good_first == good_wins else Verdict.B, "Because.", None, 100, 10)


def share(*parts: Any) -> float:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) / 2**64


def make(
    num_prompts: int, *, samples: int = 1, both_orders: bool = True, models: Sequence[str] = ("good", "bad")
) -> list[Question]:
    prompts = [PromptRecord.of([{"role": "user", "content": f"question {n}"}]) for n in range(num_prompts)]
    outputs = [
        OutputRecord(prompt.id, model, sample, f"{model} {sample}", 2, True)
        for prompt in prompts
        for model in models
        for sample in range(samples)
    ]
    return make_questions(prompts, outputs, [tuple(models)], both_orders=both_orders).questions  # type: ignore[list-item]


def judge_all(path: Path, questions: Sequence[Question], judge: Any, **how: Any) -> JudgingOutcome:
    with JudgeLedger(path / "judgements.jsonl") as ledger:
        return run_judging(questions, judge, ledger, progress=False, **how)


# --- questions


def test_both_orders_are_asked_by_default() -> None:
    questions = make(2)
    assert [(q.first, q.second, q.first_text) for q in questions] == [
        ("good", "bad", "good 0"),
        ("bad", "good", "bad 0"),
    ] * 2


def test_a_single_order_is_drawn_evenly_and_does_not_depend_on_the_other_items() -> None:
    questions = make(1_000, both_orders=False)
    assert len(questions) == 1_000
    # Four standard errors of a share of one half: 4 * sqrt(.25 / 1,000) = .063.
    assert abs(sum(q.first == "good" for q in questions) / 1_000 - 0.5) < 0.063
    firsts = {q.prompt.id: q.first for q in questions}
    assert all(firsts[q.prompt.id] == q.first for q in make(10, both_orders=False))


def test_samples_meet_by_number_and_a_single_output_meets_them_all() -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    outputs = [OutputRecord(prompt.id, "m", sample, f"m{sample}", 1, True) for sample in (2, 0, 1)]
    outputs += [OutputRecord(prompt.id, "n", sample, f"n{sample}", 1, True) for sample in (0, 1)]
    outputs += [OutputRecord(prompt.id, "human", 0, "h", 1, True)]
    found = make_questions([prompt], outputs, [("m", "human"), ("m", "n")], both_orders=False)
    pairs = [tuple(sorted((q.first_text, q.second_text))) for q in found.questions]
    assert pairs == [("h", "m0"), ("h", "m1"), ("h", "m2"), ("m0", "n0"), ("m1", "n1")]
    assert found.missing == [(prompt.id, "n")]


def test_a_prompt_without_an_output_is_reported() -> None:
    prompts = [PromptRecord.of([{"role": "user", "content": text}]) for text in ("a", "b")]
    outputs = [
        OutputRecord(prompts[0].id, "m", 0, "x", 1, True),
        OutputRecord(prompts[0].id, "n", 0, "y", 1, True),
        OutputRecord(prompts[1].id, "m", 0, "x", 1, True),
    ]
    found = make_questions(prompts, outputs, [("m", "n")])
    assert len(found.questions) == 2
    assert found.missing == [(prompts[1].id, "n")]


@pytest.mark.parametrize("pair", [("good", "good"), ("good", "absent")])
def test_a_pair_that_cannot_be_compared_is_named(pair: tuple[str, str]) -> None:
    outputs = [OutputRecord("p", "good", 0, "x", 1, True)]
    with pytest.raises(DataError, match=r"cannot compare 'good' with .* outputs exist of good"):
        make_questions([], outputs, [pair])


def test_the_key_follows_texts_order_and_judge_and_no_names() -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    key = Question(prompt, 0, "m", "n", "x", "y").key({"model": "j"})
    assert Question(prompt, 3, "other", "names", "x", "y").key({"model": "j"}) == key
    other = PromptRecord.of([{"role": "user", "content": "Ho"}])
    different = [
        Question(prompt, 0, "m", "n", "y", "x").key({"model": "j"}),
        Question(other, 0, "m", "n", "x", "y").key({"model": "j"}),
        Question(prompt, 0, "m", "n", "x", "y").key({"model": "j", "temperature": 1.0}),
    ]
    assert len({key, *different}) == 4


# --- the stage


def test_a_judge_with_a_known_win_probability_is_read_as_it_answers(tmp_path: Path) -> None:
    questions = make(500)
    outcome = judge_all(tmp_path, questions, SimulatedJudge(win=0.7, invalid=0.2), concurrency=1)
    assert outcome.unanswered == []
    assert [(r.id, r.first, r.second) for r in outcome.records] == [
        (q.prompt.id, q.first, q.second) for q in questions
    ]
    verdicts = Counter(record.verdict for record in outcome.records)
    # Three attempts with an invalid share of .2 leave .008 of 1,000; four standard errors are .0113.
    assert abs(verdicts["invalid"] / 1_000 - 0.008) < 0.0113
    wins = sum(record.winner == "good" for record in outcome.records) / (1_000 - verdicts["invalid"])
    # Four standard errors: 4 * sqrt(.7 * .3 / 1,000) = .058.
    assert abs(wins - 0.7) < 0.058


def test_invalid_verdicts_are_asked_again_counted_and_never_a_tie(tmp_path: Path) -> None:
    judge = SimulatedJudge(invalid=1.0, max_attempts=3)
    outcome = judge_all(tmp_path, make(1), judge)
    assert [record.verdict for record in outcome.records] == ["invalid", "invalid"]
    assert sorted(asked[3] for asked in judge.asked) == [0, 0, 1, 1, 2, 2]
    assert [(r.attempts, r.prompt_tokens, r.completion_tokens) for r in outcome.records] == [(3, 300, 30)] * 2
    assert outcome.num_asked == 6
    assert outcome.spent == Spending(6, 600, 60, 0.0)


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    questions = make(20)
    first = judge_all(tmp_path, questions, SimulatedJudge(invalid=0.3), concurrency=8)
    judge = SimulatedJudge(invalid=0.3)
    second = judge_all(tmp_path, questions, judge)
    assert judge.asked == []
    assert second.records == first.records
    assert (second.num_asked, second.num_reused) == (0, 40)
    assert second.spent == first.spent


def test_renamed_models_keep_their_answers(tmp_path: Path) -> None:
    judge_all(tmp_path, make(3), SimulatedJudge())
    judge = SimulatedJudge()
    renamed = [
        Question(q.prompt, q.sample, q.first.upper(), q.second.upper(), q.first_text, q.second_text)
        for q in make(3)
    ]
    outcome = judge_all(tmp_path, renamed, judge)
    assert judge.asked == []
    assert {record.first for record in outcome.records} == {"GOOD", "BAD"}


def test_an_invalid_reply_that_was_paid_is_not_paid_again_after_a_crash(tmp_path: Path) -> None:
    class Dies(SimulatedJudge):
        def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
            if attempt == 1:
                raise JudgeError("the connection is gone")
            return super().ask(prompt, first, second, attempt=attempt)

    [question] = make(1, both_orders=False)
    with pytest.raises(
        JudgeError, match=rf"the connection is gone \(asked about prompt {question.prompt.id}\)"
    ):
        judge_all(tmp_path, [question], Dies(invalid=1.0))
    judge = SimulatedJudge(invalid=1.0)
    [record] = judge_all(tmp_path, [question], judge).records
    assert [asked[3] for asked in judge.asked] == [1, 2]
    assert (record.attempts, record.prompt_tokens) == (3, 300)


def test_equal_questions_are_asked_once_and_paid_once(tmp_path: Path) -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    questions = [Question(prompt, sample, "good", "bad", "good", "bad") for sample in range(3)]
    judge = SimulatedJudge()
    outcome = judge_all(tmp_path, questions, judge, concurrency=3)
    assert len(judge.asked) == 1
    assert [record.sample for record in outcome.records] == [0, 1, 2]
    assert len({record.verdict for record in outcome.records}) == 1
    assert [record.prompt_tokens for record in outcome.records] == [100, 0, 0]
    assert [record.attempts for record in outcome.records] == [1, 0, 0]


def test_identical_outputs_are_a_tie_without_asking(tmp_path: Path) -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    pair = [Question(prompt, 0, "m", "n", "same", "same"), Question(prompt, 0, "n", "m", "same", "same")]
    judge = SimulatedJudge()
    for _ in range(2):
        outcome = judge_all(tmp_path, [*pair, *make(1)], judge, budget=Budget(calls=2))
        assert [(r.verdict, r.attempts, r.cost) for r in outcome.records[:2]] == [("tie", 0, 0.0)] * 2
        assert "identical" in outcome.records[0].reason
        assert (outcome.num_identical, outcome.stopped, len(judge.asked)) == (2, None, 2)


def test_no_more_than_the_limit_are_under_way_at_once(tmp_path: Path) -> None:
    judge = SimulatedJudge(wait=0.01)
    judge_all(tmp_path, make(12), judge, concurrency=3)
    assert judge.most_at_once == 3
    alone = SimulatedJudge(wait=0.001)
    judge_all(tmp_path / "alone", make(5), alone, concurrency=1)
    assert alone.most_at_once == 1


def test_the_same_records_come_out_at_every_concurrency(tmp_path: Path) -> None:
    outcomes = [
        judge_all(tmp_path / str(n), make(15), SimulatedJudge(invalid=0.3, wait=0.001), concurrency=n)
        for n in (1, 7)
    ]
    assert outcomes[0] == outcomes[1]
    ledgers = [read_ledger(tmp_path / str(n) / "judgements.jsonl") for n in (1, 7)]
    assert sorted(ledgers[0], key=lambda r: r.key) == sorted(ledgers[1], key=lambda r: r.key)


def test_an_error_lets_replies_under_way_land_and_asks_nothing_more(tmp_path: Path) -> None:
    class Refuses(SimulatedJudge):
        def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
            reply = super().ask(prompt, first, second, attempt=attempt)
            if len(self.asked) == 3:
                raise JudgeError("refused the key")
            time.sleep(0.05)
            return reply

    judge = Refuses()
    with pytest.raises(JudgeError, match="refused the key"):
        judge_all(tmp_path, make(50), judge, concurrency=3)
    assert len(judge.asked) == 3
    assert len(read_ledger(tmp_path / "judgements.jsonl")) == 2


def test_an_interruption_lets_replies_under_way_land(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import _thread

    class Interrupted(SimulatedJudge):
        def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
            reply = super().ask(prompt, first, second, attempt=attempt)
            if len(self.asked) == 2:
                _thread.interrupt_main()
            time.sleep(0.2)
            return reply

    judge = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        judge_all(tmp_path, make(50), judge, concurrency=2)
    assert "stopping when the replies under way are there" in caplog.text
    assert len(judge.asked) == 2
    assert len(read_ledger(tmp_path / "judgements.jsonl")) == 2


def test_no_questions_give_an_empty_outcome(tmp_path: Path) -> None:
    assert judge_all(tmp_path, [], SimulatedJudge()) == JudgingOutcome([], [], None, 0, 0, 0, Spending())


def test_concurrency_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge\.concurrency must be at least 1, got 0"):
        judge_all(tmp_path, [], SimulatedJudge(), concurrency=0)


# --- the budget


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("budget", "allowed", "words"),
    [
        # Each reply takes 100 + 10 tokens and costs 100 * 2 / 1e6 + 10 * 8 / 1e6 = .00028.
        ({"calls": 5}, 5, "budget of 5 calls: 5 made"),
        ({"calls": 0}, 0, "budget of 0 calls: 0 made"),
        ({"tokens": 560}, 5, "budget of 560 tokens: 550 used, and a reply may take 110"),
        ({"tokens": 0}, 0, "budget of 0 tokens: 0 used"),
        ({"money": 0.0010}, 3, "budget of 0.001: 0.00084 spent, and a reply may cost 0.00028"),
        ({"money": 0.0}, 0, "budget of 0: 0 spent"),
    ],
)
def test_judging_stops_at_the_budget_and_goes_on_with_a_larger_one(
    tmp_path: Path, concurrency: int, budget: dict[str, Any], allowed: int, words: str
) -> None:
    prices = {"sim-1": Price(input=2.0, output=8.0)}
    questions = make(6)
    judge = SimulatedJudge(wait=0.002)
    how: dict[str, Any] = {"concurrency": concurrency}
    stopped = judge_all(tmp_path, questions, judge, budget=Budget(**budget, prices=prices), **how)
    assert len(judge.asked) == len(stopped.records) == allowed
    assert stopped.stopped is not None
    assert words in stopped.stopped
    assert len(stopped.unanswered) == 12 - allowed
    again = judge_all(tmp_path, questions, judge, budget=Budget(**budget, prices=prices), **how)
    assert len(judge.asked) == allowed
    assert again.records == stopped.records
    whole = judge_all(tmp_path, questions, judge, budget=Budget(money=1.0, prices=prices), **how)
    assert whole.stopped is None
    assert len(judge.asked) == 12
    assert whole.spent == Spending(12, 1200, 120, pytest.approx(12 * 0.00028))


def test_a_budget_that_ends_between_two_attempts_leaves_the_question_open(tmp_path: Path) -> None:
    questions = make(1, both_orders=False)
    judge = SimulatedJudge(invalid=1.0)
    outcome = judge_all(tmp_path, questions, judge, budget=Budget(calls=2))
    assert outcome.records == []
    assert outcome.unanswered == questions
    assert outcome.spent.calls == 2
    [record] = judge_all(tmp_path, questions, judge, budget=Budget(calls=3)).records
    assert (record.verdict, record.attempts) == ("invalid", 3)
    assert [asked[3] for asked in judge.asked] == [0, 1, 2]


def test_money_without_a_price_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    judge = SimulatedJudge()
    prices = {"other": Price(1.0, 1.0)}
    with pytest.raises(ConfigError, match=r"judge\.prices has no price for 'sim-1' \(it has other\)"):
        judge_all(tmp_path, make(1), judge, budget=Budget(money=1.0, prices=prices))
    assert judge.asked == []


def test_a_budget_in_tokens_needs_a_server_that_counts_them(tmp_path: Path) -> None:
    class Silent(SimulatedJudge):
        def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
            return (
                super()
                .ask(prompt, first, second, attempt=attempt)
                ._replace(prompt_tokens=0, completion_tokens=0)
            )

    with pytest.raises(ConfigError, match="does not say how many tokens"):
        judge_all(tmp_path, make(5), Silent(), budget=Budget(tokens=1000), concurrency=1)
    # The one reply that showed it is kept.
    assert len(read_ledger(tmp_path / "judgements.jsonl")) == 1


@pytest.mark.parametrize("limit", [{"calls": -1}, {"tokens": -5}, {"money": float("nan")}])
def test_a_senseless_limit_is_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"judge\.budget\.\w+ must be at least 0 or null"):
        Budget(**limit)


def test_a_senseless_price_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.prices: output must be at least 0, got -1"):
        Price(input=1.0, output=-1.0)


def test_a_withdrawn_call_leaves_room_for_another() -> None:
    meter = BudgetMeter(Budget(calls=1), "m", Spending())
    assert meter.admit()
    waiting: list[bool] = []
    thread = threading.Thread(target=lambda: waiting.append(meter.admit()))
    thread.start()
    meter.withdraw()
    thread.join(timeout=5)
    assert waiting == [True]


# --- judges that score one output at a time


class Length:
    name, batch_size = "length", 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "length"}

    def score_many(self, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
        self.batches.append(len(items))
        return [float(len(text)) for _, text in items]


def test_scores_become_verdicts_and_are_kept_in_the_reason(tmp_path: Path) -> None:
    scorer = Length()
    outcome = judge_all(tmp_path, make(5), PointwiseJudge(scorer), concurrency=4)
    assert {record.winner for record in outcome.records} == {"good"}
    assert outcome.records[1].reason == "score of A 5, of B 6"
    # Ten questions in batches of four; both orders of a pair share their two scores.
    assert scorer.batches == [4, 4, 2]
    assert outcome.spent.tokens == 0


def test_scores_within_the_tolerance_are_a_tie() -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    verdicts = [
        PointwiseJudge(Length(), tie_tolerance=t).ask(prompt, "four", "fives").verdict for t in (0.9, 1.0)
    ]
    assert verdicts == [Verdict.B, Verdict.TIE]


def test_a_budget_of_calls_ends_a_batch_in_the_middle(tmp_path: Path) -> None:
    outcome = judge_all(tmp_path, make(5), PointwiseJudge(Length()), budget=Budget(calls=6, money=1.0))
    assert len(outcome.records) == 6
    assert outcome.stopped == "budget of 6 calls: 6 made"


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_senseless_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"judge\.tie_tolerance must be at least 0"):
        PointwiseJudge(Length(), tie_tolerance=tolerance)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "gave 1 scores for 2 outputs"),
        ([1.0, float("nan")], "gave the score nan to the output 'bad 0'"),
    ],
)
def test_unusable_scores_are_an_error_and_no_verdict(values: list[float], message: str) -> None:
    class Broken(Length):
        def score_many(self, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
            return values

    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    with pytest.raises(JudgeError, match=message):
        PointwiseJudge(Broken()).ask_many([ShownPair(prompt, "good 0", "bad 0")])


def test_turns_of_a_conversation_keep_their_roles() -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert conversation_text(turns) == "System: Be kind.\n\nUser: Hi"
