"""Labels: scores that are asked for once, and comparisons of which every verdict counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from dynamic_dpo.errors import JudgeError
from dynamic_dpo.eval.judges.function import FunctionScorer
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.judging.spending import Budget
from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.comparisons import compared, meetings, questions_about
from dynamic_dpo.rollouts.plan import Scoring, WeightedScorer
from dynamic_dpo.rollouts.settings import PairingSettings
from dynamic_dpo.rollouts.stages import run_rollout
from helpers_rollouts import ANSWERS, FirstNumberWins, comparing, plan_of, rows_of, scoring


class CountingScorer(FunctionScorer):
    """Counts what it scores, and may fail in the middle."""

    batch_size = 2

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__("helpers_rollouts:first_number")
        self.scored: list[str] = []
        self.fail_after = fail_after

    def score(self, prompt: PromptRecord, text: str) -> float:
        if len(self.scored) == self.fail_after:
            raise JudgeError("the scorer is tired")
        self.scored.append(text)
        return super().score(prompt, text)


def scored_by(scorer: FunctionScorer) -> Scoring:
    return Scoring({"number": WeightedScorer(lambda: scorer, {"function": "number"})})


def test_every_answer_is_scored_once_whatever_happens(tmp_path: Path) -> None:
    tired, fresh = CountingScorer(fail_after=13), CountingScorer()
    plan = plan_of(tmp_path / "out", labels=scored_by(tired))
    with pytest.raises(JudgeError, match="tired"):
        run_rollout(plan)
    # The batch of two that failed is lost, and nothing else.
    assert len(rows_of(tmp_path / "out" / "scores.jsonl")) == 12
    run_rollout(replace(plan, labels=scored_by(fresh)))
    texts = [text for texts in ANSWERS.values() for text in texts]
    assert sorted([*tired.scored[:12], *fresh.scored]) == sorted(texts)
    again = CountingScorer()
    run_rollout(replace(plan, labels=scored_by(again)))
    assert again.scored == []


def test_answers_that_a_filter_leaves_out_are_not_paid_for(tmp_path: Path) -> None:
    scorer = CountingScorer()
    answers = {"q": ["3 is fine", " ", "3  IS fine", "1 is less"]}
    result = run_rollout(plan_of(tmp_path / "out", answers, labels=scored_by(scorer)))
    assert scorer.scored == ["3 is fine", "1 is less"]
    assert result.summary["dropped"] == {"empty": 1, "identical": 1}


def test_several_scorers_are_added_up_with_their_weights(tmp_path: Path) -> None:
    answers = {"q": ["3 short", "2 rather longer", "1 the longest of them all"]}
    labels = Scoring({"number": scoring(weight=1.0), "length": scoring("helpers_rollouts:length", -0.25)})
    run_rollout(plan_of(tmp_path / "out", answers, labels=labels))
    (pair,) = rows_of(tmp_path / "out" / "pairs.jsonl")
    # 3 - 7/4, 2 - 15/4 and 1 - 25/4
    assert (pair["metadata"]["chosen"]["score"], pair["metadata"]["rejected"]["score"]) == (1.25, -5.25)
    assert pair["metadata"]["chosen"]["scores"] == {"number": 3.0, "length": 7.0}
    assert pair["metadata"]["judge"] == "number, length"


def test_a_changed_function_scores_anew_and_the_old_scores_are_no_answer(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out")
    run_rollout(plan)
    run_rollout(replace(plan, labels=Scoring({"number": scoring("helpers_rollouts:length")})))
    for pair in rows_of(tmp_path / "out" / "pairs.jsonl"):
        assert pair["metadata"]["chosen"]["score"] == len(pair["chosen"])
    assert len(rows_of(tmp_path / "out" / "scores.jsonl")) == 2 * sum(map(len, ANSWERS.values()))


# ---- comparisons ----


def test_every_two_answers_meet_in_both_orders_and_every_verdict_counts(tmp_path: Path) -> None:
    judge = FirstNumberWins()
    plan = plan_of(tmp_path / "out", labels=comparing(judge), pairing=PairingSettings(rule="all"))
    result = run_rollout(plan)
    expected = {
        (prompt, *order)
        for prompt, texts in ANSWERS.items()
        for one, other in combinations(texts, 2)
        for order in ((one, other), (other, one))
    }
    assert set(judge.asked) == expected
    assert len(judge.asked) == len(expected)
    # By hand: an answer's score is its share of the points, a tie half a point.
    for pair in rows_of(tmp_path / "out" / "pairs.jsonl"):
        texts = ANSWERS[pair["prompt_messages"][0]["content"]]
        for side in ("chosen", "rejected"):
            number = int(pair[side].split()[0])
            others = [int(text.split()[0]) for text in texts if text != pair[side]]
            points = sum(0.5 if number == other else float(number > other) for other in others)
            assert pair["metadata"][side]["score"] == pytest.approx(points / 3)
            assert pair["metadata"][side]["scores"] == {"wins": pytest.approx(points / 3)}
    assert result.summary["judging"]["num_judgements"] == len(expected)
    run_rollout(plan)
    assert len(judge.asked) == len(expected)


def test_what_the_orders_disagree_on_is_a_tie(tmp_path: Path) -> None:
    judge = FirstNumberWins(flips=list(ANSWERS)[:3])
    result = run_rollout(plan_of(tmp_path / "out", labels=comparing(judge)))
    with_pairs = {row["prompt_messages"][0]["content"] for row in rows_of(tmp_path / "out" / "pairs.jsonl")}
    assert not with_pairs & set(list(ANSWERS)[:3])
    assert result.summary["judging"]["flipped"] == 18
    assert result.summary["dropped"]["tie"] >= 3


def test_an_invalid_verdict_counts_for_neither_and_is_listed(tmp_path: Path) -> None:
    answers = {"q": ["3 a", "2 b", "1 c"], "r": ["2 d", "1 e"]}
    judge = FirstNumberWins(silent=["2 b", "1 e"])
    result = run_rollout(plan_of(tmp_path / "out", answers, labels=comparing(judge)))
    (pair,) = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == ("3 a", "1 c")
    assert result.summary["dropped"] == {"invalid_judgement": 3, "no_label": 3, "too_few_answers": 1}


def test_at_a_limit_of_the_budget_pairs_are_made_of_what_is_judged(tmp_path: Path) -> None:
    judge = FirstNumberWins()
    labels = comparing(judge)
    poor = replace(labels, judging=replace(labels.judging, budget=Budget(calls=14)))
    result = run_rollout(plan_of(tmp_path / "out", labels=poor))
    assert result.stopped == "budget of 14 calls: 14 made"
    # Twelve calls are the first prompt, two more the first comparison of the second.
    assert len(rows_of(tmp_path / "out" / "pairs.jsonl")) <= 2
    assert result.summary["dropped"]["not_judged"] == 8 * 6 - 1
    assert "budget of 14 calls" in (tmp_path / "out" / "report.html").read_text()
    assert run_rollout(plan_of(tmp_path / "out", labels=labels)).stopped is None
    assert len(judge.asked) == len(set(judge.asked))
    assert len(read_ledger(tmp_path / "out" / "judgements.jsonl")) == 9 * 12


@pytest.mark.parametrize("count", range(2, 10))
def test_a_bounded_tournament_lets_all_meet_nearly_equally_many_and_no_two_twice(count: int) -> None:
    answers = [Answer("policy", n, str(n)) for n in range(count)]
    everything = count * (count - 1) // 2
    for most in range(1, everything + 1):
        met = meetings("p", answers, comparing(FirstNumberWins(), max_comparisons=most))
        assert len({frozenset((one.name, other.name)) for one, other in met}) == len(met) == most
        times = [sum(answer in pair for pair in met) for answer in answers]
        if most % count == 0 or most == everything:
            assert len(set(times)) == 1
        assert max(times) - min(times) <= 2


def test_the_meetings_hang_on_the_prompt_and_not_on_the_order_of_the_answers() -> None:
    answers = [Answer("policy", n, str(n)) for n in range(6)]
    bounded = comparing(FirstNumberWins(), max_comparisons=6)

    def met(prompt: str, answers: list[Answer]) -> set[frozenset[str]]:
        return {frozenset((one.name, other.name)) for one, other in meetings(prompt, answers, bounded)}

    assert met("p", answers) == met("p", answers[::-1])
    assert len({frozenset(met(f"p{n}", answers)) for n in range(5)}) > 1


def test_with_a_reference_samples_are_measured_against_it_alone() -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    answers = [Answer("reference", 0, "r"), *(Answer("policy", n, str(n)) for n in range(3))]
    met = meetings(prompt.id, answers, comparing(FirstNumberWins()), with_reference=True)
    assert [(one.name, other.name) for one, other in met] == [
        (f"policy#{n}", "reference#0") for n in range(3)
    ]
    verdicts = iter(["A", "B", "B", "A", "A", "A"])  # won, lost, disagreed
    records = {
        (q.first, q.second): JudgementRecord("k", prompt.id, 0, "j", q.first, q.second, next(verdicts))
        for q in questions_about(prompt, met)
    }
    found = compared(prompt.id, answers, met, records, with_reference=True)
    assert {answer.name: answer.score for answer in found.answers} == {
        "reference#0": 0.5,
        "policy#0": 1.0,
        "policy#1": 0.0,
        "policy#2": 0.5,
    }
