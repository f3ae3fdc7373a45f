from __future__ import annotations

import pytest

from dynamic_dpo.eval.judges.labels import FIVE_LABELS, THREE_LABELS, read_label
from dynamic_dpo.eval.judges.verdict import Verdict

A, B, TIE, INVALID = Verdict.A, Verdict.B, Verdict.TIE, Verdict.INVALID

# Reply, verdict, whether strong.
FIVE = [
    ("My final verdict is tie: [[A=B]]", TIE, False),
    ("Assistant A is slightly better: [[A>B]]", A, False),
    ("Assistant A is significantly better: [[A>>B]]", A, True),
    ("4. Assistant B is slightly better: [[B>A]]", B, False),
    ("5. Assistant B is significantly better: [[B>>A]].", B, True),
    ("[[A>B]]", A, False),
    ("**My final verdict is: [[B>A]]**", B, False),
    ("My final verdict is [[ A >> B ]]", A, True),
    ("my final verdict is [[a=b]]", TIE, False),
    ("The first is wrong.\n\n[[B>>A]]\n\nI hope this helps the user.", B, True),
    ("Verdict: [[A>B]], since B misses the second case and never says why it does.", A, False),
    ("[[A>B]] is my verdict. To repeat it as asked: [[A>B]]", A, False),
    ("Written from the other side: [[B<A]], that is [[A>B]].", A, False),
    ("Assistant B is much better: [[A<<B]]", B, True),
    ("I first thought [[A=B]], but my final verdict is [[A>B]]", INVALID, False),
    ("[[A>B]] or rather [[A>>B]]", INVALID, False),
    ("One of: [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]", INVALID, False),
    ("My final verdict is [[A]]", INVALID, False),
    ("My final verdict is [[A>A]]", INVALID, False),
    ("My final verdict is tie: A=B", INVALID, False),
    ("<think>[[A>B]] at first sight.</think>\nMy final verdict is [[B>A]]", B, False),
    ("<think>Probably [[A>B]]", INVALID, False),
    ("The matrix is [[1, 2], [3, 4]] in both.\nMy final verdict is tie: [[A=B]]", TIE, False),
    ("My final verdict is [A>B]", A, False),
    ("Both index x[A] well. I cannot decide.", INVALID, False),
    ("", INVALID, False),
    (None, INVALID, False),
]


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(FIVE) >= 20


@pytest.mark.parametrize(("reply", "verdict", "strong"), FIVE)
def test_reply_gives_the_label_that_its_author_wrote(
    reply: str | None, verdict: Verdict, strong: bool
) -> None:
    found = read_label(reply)
    assert (found.verdict, found.strong) == (verdict, strong)


def test_each_label_says_the_contrary_of_its_mirror_image() -> None:
    mirror = str.maketrans("AB", "BA")
    for text, label in FIVE_LABELS.items():
        assert FIVE_LABELS[text.translate(mirror)] == (label.verdict.swapped(), label.strong)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A follows the instruction.\n\n[[A]]", A),
        ("Final verdict: [[B]], for the reasons above.", B),
        ('"[[C]]"', TIE),
        ("[[A]] and not [[B]]", INVALID),
        ("[[A>B]]", INVALID),
        ("[[D]]", INVALID),
    ],
)
def test_three_labels_are_read_alike(reply: str, verdict: Verdict) -> None:
    assert read_label(reply, THREE_LABELS).verdict is verdict


def test_the_reason_is_what_stands_before_the_first_label() -> None:
    assert read_label("<think>Hm.</think>B is kinder. [[B>A]]\nAgain: [[B>A]]").reason == "B is kinder."
    assert read_label("Neither.").reason == "Neither."
