"""The preference set that ships with the project, and the script that made it."""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from dynamic_dpo.eval.lint import lint_output
from places import ROOT

FOLDER = ROOT / "examples" / "sentiment"
SCRIPT = runpy.run_path(str(FOLDER / "make_pairs.py"))
Candidate = SCRIPT["Candidate"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def heldout() -> list[list[dict[str, str]]]:
    return [
        row["prompt"] for row in json.loads((FOLDER / "prompts_heldout.json").read_text(encoding="utf-8"))
    ]


def words(row: dict[str, Any], side: str) -> int:
    return len(row[side][0]["content"].split())


def test_the_set_has_enough_pairs_prompts_and_held_out_prompts(
    rows: list[dict[str, Any]], heldout: list[Any]
) -> None:
    assert 300 <= len(rows) <= 450
    assert len({row["prompt"][0]["content"] for row in rows}) >= 200
    assert len({prompt[0]["content"] for prompt in heldout}) == len(heldout) >= 64


def test_held_out_prompts_share_no_thing_with_the_pairs(
    rows: list[dict[str, Any]], heldout: list[Any]
) -> None:
    trained = {row["prompt"][0]["content"] for row in rows}
    for prompt in heldout:
        [thing] = [
            thing
            for things in SCRIPT["THINGS"].values()
            for thing in things
            if prompt[0]["content"] in {template.format(thing) for template in SCRIPT["TEMPLATES"]}
        ]
        assert not {template.format(thing) for template in SCRIPT["TEMPLATES"]} & trained


def test_every_pair_is_ranked_by_vader_with_a_clear_gap(rows: list[dict[str, Any]]) -> None:
    vader = SentimentIntensityAnalyzer()
    for row in rows:
        scores = [
            vader.polarity_scores(row[side][0]["content"])["compound"] for side in ("chosen", "rejected")
        ]
        assert scores == [row["score_chosen"], row["score_rejected"]]
        assert scores[0] - scores[1] >= 0.4


def test_every_answer_is_one_line_without_faults(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        for side in ("chosen", "rejected"):
            [message] = row[side]
            assert message["role"] == "assistant"
            assert message["content"] == message["content"].strip()
            assert "\n" not in message["content"]
            assert lint_output(message["content"]) == []
            assert words(row, side) >= 5


def test_length_does_not_give_the_preference_away(rows: list[dict[str, Any]]) -> None:
    differences = [words(row, "chosen") - words(row, "rejected") for row in rows]
    assert abs(statistics.mean(differences)) < 1.5
    assert 0.4 < sum(difference > 0 for difference in differences) / len(rows) < 0.6


def test_no_review_is_in_two_pairs_of_a_prompt(rows: list[dict[str, Any]]) -> None:
    used = [
        (row["prompt"][0]["content"], row[side][0]["content"])
        for row in rows
        for side in ("chosen", "rejected")
    ]
    assert len(set(used)) == len(used)


# --- the script


def record(*reviews: tuple[str, bool]) -> dict[str, Any]:
    return {"reviews": [{"text": text, "finished": finished} for text, finished in reviews]}


def test_reviews_that_are_cut_short_broken_faulty_or_repeated_are_dropped() -> None:
    good = "A warm room and a kind cook."
    reviews = record(
        (f"  {good}\n", True),
        (good, True),
        ("A warm room and a kind", False),
        ("Nice.", True),
        ("A warm room.\nAnd a kind cook too.", True),
        ("Assistant: a warm room and a kind cook.", True),
    )
    assert SCRIPT["usable_reviews"](reviews, lambda text: 0.5) == [Candidate(good, 0.5)]


def test_pairs_take_the_widest_gap_first_and_share_no_review() -> None:
    a, b, c, d = (
        Candidate(f"text {name}", score) for name, score in zip("abcd", (0.9, 0.6, 0.0, -0.5), strict=True)
    )
    choose = SCRIPT["choose_pairs"]
    assert choose([b, d, c, a], min_gap=0.4, length_cost=0.0, most=2) == [(a, d), (b, c)]
    assert choose([b, d, c, a], min_gap=0.4, length_cost=0.0, most=1) == [(a, d)]
    assert choose([b, d, c, a], min_gap=0.7, length_cost=0.0, most=2) == [(a, d)]
    assert choose([a], min_gap=0.4, length_cost=0.0, most=2) == []


def test_a_pair_of_like_length_is_preferred_at_a_small_loss_of_gap() -> None:
    long, short, sad = Candidate("good " * 9, 0.9), Candidate("good", 0.8), Candidate("bad", -0.5)
    choose = SCRIPT["choose_pairs"]
    # 8 words at .0 a word: the widest gap; at .1 a word: 1.4 - .8 < 1.3.
    assert choose([long, short, sad], min_gap=0.4, length_cost=0.0, most=1) == [(long, sad)]
    assert choose([long, short, sad], min_gap=0.4, length_cost=0.1, most=1) == [(short, sad)]


SETTINGS = {"seed": 0, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 4, "num_samples": 2}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Output:
        def __init__(self, text: str) -> None:
            self.text, self.finished = text, True

    def generate(
        model: Any, tokenizer: Any, prompts: list[Any], *, num_samples: int, **_: Any
    ) -> list[Output]:
        asked.extend(prompt[0]["content"] for prompt in prompts)
        return [Output(f"{prompt[0]['content']} {n}") for prompt in prompts for n in range(num_samples)]

    monkeypatch.setattr("dynamic_dpo.eval.generate.batched.generate", generate)
    monkeypatch.setattr("dynamic_dpo.models.sources.load_model", lambda source: None)
    monkeypatch.setattr("dynamic_dpo.models.sources.load_tokenizer", lambda source: None)
    monkeypatch.setattr("dynamic_dpo.models.sources.resolve_model", lambda name: None)
    args = argparse.Namespace(**SETTINGS, batch_size=4)
    store, prompts = tmp_path / "runs" / "store.jsonl", ["p1", "p2", "p3", "p4", "p5"]

    whole = SCRIPT["sample_reviews"](prompts, store, args)
    assert [review["text"] for review in whole[0]["reviews"]] == ["p1 0", "p1 1"]
    lines = store.read_text().splitlines()
    # A crash in the middle of the fourth line.
    store.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    asked.clear()
    assert SCRIPT["sample_reviews"](prompts, store, args) == whole
    assert asked == ["p4", "p5"]
    assert store.read_text().splitlines() == lines
    asked.clear()
    args.seed = 1
    SCRIPT["sample_reviews"](prompts, store, args)
    assert asked == prompts
