"""What is left out: each reason on answers and pairs that show it, and on their neighbours that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.filters import (
    ANSWER_FILTERS,
    PAIR_FILTERS,
    pair_fault,
    read_patterns,
    similarity,
    usable_answers,
)
from dynamic_dpo.rollouts.page import MEANINGS
from dynamic_dpo.rollouts.settings import AnswerFilters, PairingSettings


def answer(text: str, sample: int = 0, **rest: object) -> Answer:
    return Answer(rest.pop("model", "policy"), sample, text, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("empty", answer(" \n\t")),
        ("not_text", answer("half a pair: \ud83d")),
        ("truncated", answer("It goes on and", finished=False)),
        ("refusal", answer("I'm sorry, but I CANNOT help with that.")),
        ("identical", answer("a FINE  answer")),
    ],
)
def test_each_reason_is_named_and_the_rest_stays(reason: str, dropped: Answer) -> None:
    kept = answer("A fine answer", 1)
    found = usable_answers("p", [kept, dropped], AnswerFilters(refusals=(r"\bcannot help\b",)))
    assert found.answers == [kept]
    assert [(item.id, item.reason, item.answers) for item in found.dropped] == [("p", reason, ("policy#0",))]


def test_answers_that_were_cut_off_stay_only_if_that_is_asked_for() -> None:
    cut = answer("It goes on and", finished=False)
    assert usable_answers("p", [cut], AnswerFilters(truncated=False)).answers == [cut]


def test_two_writers_may_say_the_same_but_make_no_pair_of_it() -> None:
    mine, theirs = answer("Yes."), answer("yes.", model="reference")
    assert usable_answers("p", [theirs, mine], AnswerFilters()).answers == [theirs, mine]
    assert pair_fault(mine, theirs, PairingSettings()) == "identical_pair"


@pytest.mark.parametrize(
    ("reason", "scores", "texts"),
    [
        ("tie", (0.5, 0.5), ("a b c d", "e f g h")),
        ("tie", (0.4, 0.5), ("a b c d", "e f g h")),
        ("gap_too_small", (0.6, 0.5), ("a b c d", "e f g h")),
        # 8 triples of 9 in common.
        ("near_identical", (2, 1), ("a b c d e f g h i j k", "a b c d e f g h i j")),
        ("length_mismatch", (2, 1), ("a b c d", "e f g h i j k l m")),
        (None, (2, 1), ("a b c d", "e f g h")),
    ],
)
def test_each_fault_of_a_pair_is_named(
    reason: str | None, scores: tuple[float, float], texts: tuple[str, str]
) -> None:
    settings = PairingSettings(min_gap=0.25, near_identical=8 / 9, max_length_ratio=2.0)
    chosen, rejected = (answer(text, score=score) for text, score in zip(texts, scores, strict=True))
    assert pair_fault(chosen, rejected, settings) == reason


def test_the_share_of_common_triples_can_be_left_unasked() -> None:
    same = (answer("a b c d", score=2), answer("a b c d.", score=1))
    assert pair_fault(*same, PairingSettings(near_identical=None)) is None


def test_every_reason_is_explained_on_the_page() -> None:
    assert {*ANSWER_FILTERS, *PAIR_FILTERS} <= set(MEANINGS)


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_one_for_what_reads_the_same(one: str, other: str) -> None:
    assert similarity(one, other) == similarity(other, one)
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, f" {one}\n") == 1


def test_patterns_are_read_from_a_file_and_a_bad_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "refusals.txt"
    file.write_text("# English\n^I('m| am) sorry\n\nas an AI\n")
    assert read_patterns(file) == ("^I('m| am) sorry", "as an AI")
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        AnswerFilters(refusals=("(",))
    file.write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no pattern"):
        read_patterns(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_patterns(tmp_path / "missing.txt")
