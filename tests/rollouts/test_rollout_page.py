"""The page of a rollout: what it shows, and that no answer can break it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamic_dpo.rollouts import summary
from dynamic_dpo.rollouts.figures import NUM_BINS, binned, histogram
from dynamic_dpo.rollouts.settings import PairingSettings
from dynamic_dpo.rollouts.stages import run_rollout
from helpers_pages import Page
from helpers_rollouts import ANSWERS, FirstNumberWins, comparing, plan_of, rows_of
from hostile_texts import HOSTILE


def test_the_page_shows_scores_gaps_lengths_reasons_and_twenty_pairs(tmp_path: Path) -> None:
    answers = ANSWERS | {"question 2": ["4 the same"] * 4}
    result = run_rollout(plan_of(tmp_path / "out", answers, pairing=PairingSettings(rule="all")))
    page = Page(tmp_path / "out" / "report.html")
    assert page.open == []
    assert page.headings[-4:] == [
        "What came out",
        "What was left out",
        "Scores and lengths",
        "20 pairs side by side",
    ]
    assert len(page.ids) == len(set(page.ids))
    for text in (
        "Highest less lowest score of a prompt",
        "Gap: chosen less rejected score",
        "Length: chosen less",
    ):
        assert text in page.text
    assert f"{result.summary['pairs']} pairs by all" in page.text
    assert page.text.count("chosen (policy#") == page.text.count("rejected (policy#") == 20
    reasons = {row["reason"] for row in rows_of(tmp_path / "out" / "dropped.jsonl")}
    assert {"identical", "too_few_answers"} <= reasons
    assert all(reason in page.text for reason in reasons)
    assert "src" not in {name for _, name, _ in page.attributes}


def test_the_pairs_shown_are_drawn_whatever_the_order_of_the_prompts(tmp_path: Path) -> None:
    shown = []
    for name, answers in (("a", ANSWERS), ("b", dict(reversed(ANSWERS.items())))):
        run_rollout(plan_of(tmp_path / name, answers, pairing=PairingSettings(rule="all")))
        text = Page(tmp_path / name / "report.html").text
        shown.append(text[text.index("20 pairs side by side") : text.index("What this was made with")])
    assert shown[0] == shown[1]


def test_a_judges_agreement_and_cost_are_shown_and_too_many_failures_raise_an_alarm(tmp_path: Path) -> None:
    texts = [text for texts in ANSWERS.values() for text in texts]
    judge = FirstNumberWins(flips=["question 1"], silent=texts[:3])
    run_rollout(plan_of(tmp_path / "out", labels=comparing(judge)))
    page = Page(tmp_path / "out" / "report.html")
    assert "The judge" in page.headings
    assert "chose the answer shown first" in page.text
    assert "11.1 % of the judge's verdicts are invalid" in page.text  # 12 of 108
    assert "12.5 % flipped" in page.text.replace("\u00a0", " ")  # 6 of the 48 comparisons with valid verdicts


def test_chosen_answers_that_are_longer_as_a_rule_raise_an_alarm(tmp_path: Path) -> None:
    answers = {f"q{n}": ["1 short", f"2 is the longer of the two, number {n}"] for n in range(20)}
    run_rollout(plan_of(tmp_path / "out", answers))
    text = Page(tmp_path / "out" / "report.html").text
    assert "The chosen answer is the longer one in 100.0 % of the pairs" in text


def test_no_answer_breaks_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What holds half a surrogate pair is in no pair; what is endless takes its time elsewhere.
    texts = [
        text for text in HOSTILE if len(text) < 2000 and not any("\ud800" <= c <= "\udfff" for c in text)
    ]
    assert len(texts) > 100
    monkeypatch.setattr(summary, "NUM_SHOWN", len(texts))

    def structure(texts: list[str], name: str) -> list[object]:
        answers = {f"q{n}": [f"1 {text} {n}", f"2 other words {text} {n}"] for n, text in enumerate(texts)}
        settings = PairingSettings(near_identical=None)
        result = run_rollout(plan_of(tmp_path / name, answers, pairing=settings))
        assert result.summary["pairs"] == len(texts)
        page = Page(tmp_path / name / "report.html")
        assert page.open == []
        assert page.text.count("chosen (policy#") == len(texts)
        # The histogram of lengths has other bars.
        return [
            element
            for element in page.structure
            if "rect" not in str(element) and "title" not in str(element)
        ]

    assert structure(texts, "hostile") == structure(["harmless"] * len(texts), "harmless")


def test_every_value_is_in_a_bin_and_the_picture_says_what_it_shows() -> None:
    values = [-1.0, 0.0, 0.5, 1.0]
    assert sum(binned(values, -1.0, 1.0)) == 4
    assert binned([1.0], -1.0, 1.0)[NUM_BINS - 1] == 1
    page = Page(str(histogram(values, label="gaps")))
    assert ("svg", "aria-label", "gaps") in page.attributes
    assert page.tags.count("rect") == 4
    assert page.tags.count("line") == 2  # the axis, and the line at 0
    assert Page(str(histogram([3.0, 3.0], label="all alike"))).tags.count("rect") == 1
