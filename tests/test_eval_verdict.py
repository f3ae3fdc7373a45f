from __future__ import annotations

import json

import pytest

from dynamic_dpo.eval.verdict import Verdict, parse_verdict

A, B, TIE, INVALID = Verdict.A, Verdict.B, Verdict.TIE, Verdict.INVALID

AS_ASKED = [
    ("Verdict: A", A),
    ("Verdict: B", B),
    ("Verdict: tie", TIE),
    ("A is warmer and answers the question.\n\nVerdict: A", A),
    ("Both are wrong in the same way.\n\nVerdict: tie", TIE),
    ("Reasons.\nVerdict: B\n", B),
    ("Reasons.\nVerdict: B   \n\n\n", B),
    ("  Verdict: A", A),
    ("verdict: a", A),
    ("VERDICT: B", B),
    ("Verdict: Tie.", TIE),
    ("Verdict: A.", A),
    ("Verdict:A", A),
    ("Verdict = B", B),
    ("Verdict - A", A),
    ("Verdict — tie", TIE),
    ("Reasons.\r\nVerdict: B\r\n", B),
]
WITH_MARKDOWN = [
    ("**Verdict: A**", A),
    ("**Verdict:** B", B),
    ("**Verdict**: tie", TIE),
    ("Verdict: **A**", A),
    ("Verdict: `B`", B),
    ("### Verdict: A", A),
    ("> Verdict: B", B),
    ('Verdict: "A"', A),
    ("***Final verdict: tie***", TIE),
    ("Verdict: [[A]]", A),
    ("Verdict: [B]", B),
    ("Verdict: **[[tie]]**", TIE),
]
IN_OTHER_WORDS = [
    ("Final verdict: A", A),
    ("My verdict: B", B),
    ("My final verdict is A.", A),
    ("The verdict is tie", TIE),
    ("Verdict: Response A", A),
    ("Verdict: Output B.", B),
    ("Verdict: the answer A", A),
    ("Verdict: Assistant B", B),
    ("Verdict: Summary A", A),
    ("Verdict: Response **B**", B),
]
BARE = [("A", A), ("B.", B), ("[[A]]", A), ("**B**", B), ("tie", TIE), ("Response A", A), ("  Tie\n", TIE)]
AS_JSON = [
    ('{"verdict": "A"}', A),
    ('{"reasons": "B is longer; nearly a tie", "verdict": "b"}', B),
    ('```json\n{"verdict": "tie"}\n```', TIE),
    ('My reasons.\n\n```json\n{\n  "verdict": "A"\n}\n```', A),
    ('{"verdict": "C"}', INVALID),
    ('{"verdict": 1}', INVALID),
    ('{"verdict": null}', INVALID),
    ('{"winner": "A"}', INVALID),
    ('{"verdict": "A", "reasons": "it is', INVALID),
    ('["A"]', INVALID),
]
NOT_A_VERDICT = [
    (None, INVALID),
    ("", INVALID),
    ("   \n", INVALID),
    ("A good answer would name its source.", INVALID),
    ("Response A is better.", INVALID),
    ("It is a tie.", INVALID),
    ("I thought about calling it a tie, but B is clearer.", INVALID),
    ("I cannot compare these outputs.", INVALID),
    ("Verdict: C", INVALID),
    ("Verdict: neither", INVALID),
    ("Verdict: A or B", INVALID),
    ("Verdict: A/B", INVALID),
    ("Verdict:", INVALID),
    ("Verdict: A because it is kinder", INVALID),
    ("Verdict: Both", INVALID),
    ("Verdict: a good answer", INVALID),
    ("Verdict: A\nVerdict: B", INVALID),
    ("Output A says 'Verdict: A' to win.\nVerdict: A\nThat is a trick.\nVerdict: B", INVALID),
    ("Verdict: A\nOn second thoughts this needs more th", INVALID),
    ("Output B is clearer, so my verd", INVALID),
    ("A\nB", INVALID),
]
TABLE = AS_ASKED + WITH_MARKDOWN + IN_OTHER_WORDS + BARE + AS_JSON + NOT_A_VERDICT


@pytest.mark.parametrize(("reply", "expected"), TABLE)
def test_reply_gives_the_verdict_that_its_author_wrote(reply: str | None, expected: Verdict) -> None:
    assert parse_verdict(reply) is expected


def test_the_same_verdict_written_twice_counts_once() -> None:
    assert parse_verdict("**Verdict: B**\nIn the asked form:\nVerdict: B") is B


@pytest.mark.parametrize("verdict", list(Verdict))
def test_swapping_twice_gives_the_verdict_back(verdict: Verdict) -> None:
    assert verdict.swapped().swapped() is verdict


def test_a_swapped_reply_favours_the_other_output() -> None:
    assert [verdict.swapped() for verdict in (A, B, TIE, INVALID)] == [B, A, TIE, INVALID]


def test_a_verdict_is_written_to_json_as_its_label() -> None:
    assert json.dumps([A, B, TIE, INVALID]) == '["A", "B", "tie", "invalid"]'
