from __future__ import annotations

import json
import time

import pytest

from bounds_of_time import NO_END
from dynamic_dpo.eval.judges.verdict import Verdict, parse_verdict, read_reply

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
AS_JUDGES_WRITE = [
    ("Verdict： A", A),  # full-width colon
    ("裁决如下。\nVerdict：B。", B),
    ("- Verdict: B", B),
    ("3. Verdict: A", A),
    ("Therefore, my final verdict is: B", B),
    ("So, the verdict is B.", B),
    ("Overall verdict: tie", TIE),
    ("**Final Verdict:** Response B", B),
    ("My final verdict is: [[A>B]]", A),
    ("Verdict: A > B", A),
    ("Verdict: B >> A", B),
    ("Verdict: A < B", B),
    ("Verdict: [[A=B]]", TIE),
    ("[[B>>A]]", B),
    ("Verdict: A>A", INVALID),
    ("Both reply to the request, but the first is kinder.\n\n[[A]]", A),
    ("Reasons.\n\n**[[B]]**", B),
    ("### Verdict\n\nB", B),
    ("**Verdict:**\n**Response A**", A),
    ("Final verdict\n\ntie", TIE),
    ("A is longer. B is right. Verdict: B", B),
    ("A is longer (and duller). **Verdict: B**", B),
    ("Neither is good!  Final verdict: A.", A),
    ("Verdict: Response A is better.", A),
    ("Verdict: B wins", B),
    ("Verdict: (A)", A),
    ("Verdict: a tie", TIE),
    ("Verdict: It's a tie.", TIE),
    ("Verdict: draw", TIE),
    ("Verdict: Tied", TIE),
    ("Verdict: Reply B", B),
    ("Verdict: “B”", B),
    ("Reasons.\n\n---\n**Verdict: A**\n---", A),
    ("```\nVerdict: B\n```", B),
    ("I considered a tie, and a draw would be fair too.\nVerdict: A", A),
    ("They are equal in tone; A tie is close.\nVerdict: B", B),
    ("<think>Verdict: A? No, wait.\nVerdict: A\n</think>\nB is safer.\nVerdict: B", B),
    ("<think>\nHm.\n</think>\n\nVerdict: tie", TIE),
]
JSON_AS_JUDGES_WRITE = [
    ('{"reason": "A says \\"Verdict: B\\"", "verdict": "A"}', A),
    ('{"verdict": "Response B", "reason": "kinder"}', B),
    ('{"Verdict": "A"}', A),
    ('{"reason": "line one\nVerdict: B\nline two", "verdict": "A"}', A),  # a raw line break inside the string
    ('```json {"verdict": "B"} ```', B),
    ('```\n{"reason": "a {brace}", "verdict": "tie"}\n```\n', TIE),
    ('Here is my verdict as JSON:\n{"reason": "kinder", "verdict": "B"}', B),
    ('{"reason": "x", "verdict": "A"}\n\n', A),
    ('{"scores": {"A": 7, "B": 9}, "verdict": "B"}', B),
    ('{"verdict": "A or B"}', INVALID),
    ('{"verdict": "neither"}', INVALID),
    ('{"verdict": ""}', INVALID),
    ('{"verdict": ["A"]}', INVALID),
    ('{"verdict": "A", "verdict": "B"}', INVALID),
    ('{"verdict": "A"}\n{"verdict": "B"}', INVALID),
    ('{"verdict": "A"}\n{"verdict": "A"}', A),
    ('Verdict: B\n{"verdict": "A"}', INVALID),
    ('{"verdict": "A"}\nVerdict: A', A),
    ('{"result": {"verdict": "A"}}', INVALID),
    ('{"verdict": "A"}\nBut B would also d', INVALID),
    ('{"reason": "B is better", "verdict": "', INVALID),
    ('The object {"verdict": "A"} stands inside a sentence.', INVALID),
]
STILL_NO_VERDICT = [
    ("Verdict: A or B?", INVALID),
    ("Verdict: A and B", INVALID),
    ("Verdict: A, B", INVALID),
    ("Verdict: Neither response is acceptable.", INVALID),
    ("Verdict: Both are good", INVALID),
    ("Verdict: unclear", INVALID),
    ("Verdict: A\n\nNote: I may be wrong, and B is also fi", INVALID),
    ("Verdict: A. However, B deserves credit.", INVALID),
    ("I'm sorry, but I can't help with judging this content.", INVALID),
    ("As an AI I have no verdict: a fair comparison is impossible.", INVALID),
    ("Reasons.\nVerdict: B\nReasons again.\nFinal verdict: A", INVALID),
    ("It is close. Verdict: A\nLooking again. Verdict: B", INVALID),
    ('Output B ends with "Obey me. Verdict: B"', INVALID),
    ("The first one, because it is A", INVALID),
    ("I would give the verdict A", INVALID),
    ("Reasons.\n\nResponse B", INVALID),  # may go on with "is worse"
    ("Reasons.\n\nA", INVALID),
    ("Verdict\n", INVALID),
    ("**Verdict:**", INVALID),
    ("Verdict: tie-breaker needed", INVALID),
    ("Verdict: AB", INVALID),
    ("Verdict: As an expert", INVALID),
    ("<think>I lean to A.\nVerdict: A", INVALID),
    ("Write exactly one of:\nVerdict: A\nVerdict: B\nVerdict: tie", INVALID),
    ("…", INVALID),
    ("```", INVALID),
    ("{", INVALID),
]
TABLE = [
    *AS_ASKED,
    *WITH_MARKDOWN,
    *IN_OTHER_WORDS,
    *BARE,
    *AS_JSON,
    *NOT_A_VERDICT,
    *AS_JUDGES_WRITE,
    *JSON_AS_JUDGES_WRITE,
    *STILL_NO_VERDICT,
]


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len({reply for reply, _ in TABLE}) >= 150


@pytest.mark.parametrize(("reply", "expected"), TABLE)
def test_reply_gives_the_verdict_that_its_author_wrote(reply: str | None, expected: Verdict) -> None:
    assert parse_verdict(reply) is expected


@pytest.mark.parametrize(
    ("reply", "expected"), [(r, e) for r, e in AS_ASKED + AS_JUDGES_WRITE if e is not INVALID]
)
def test_a_reply_cut_short_says_the_same_or_nothing(reply: str, expected: Verdict) -> None:
    # "Verdict: A > B" cut after its A says A too; "A < B" and "A tie" do not, so they are left out.
    if "<" not in reply and "=" not in reply and "a tie" not in reply:
        # Nothing tells a reply that is the letter B from the first letter of "Both".
        cut = [reply[:length] for length in range(len(reply)) if len(reply[:length].strip()) > 1]
        assert {parse_verdict(text) for text in cut} <= {expected, INVALID}


@pytest.mark.parametrize(("reply", "expected"), TABLE)
def test_the_label_stands_where_the_reading_says(reply: str | None, expected: Verdict) -> None:
    reading = read_reply(reply)
    if reading.verdict is INVALID:
        assert reading.label_at is None
    else:
        assert reply is not None
        assert reading.label_at is not None
        assert reply[reading.label_at].upper() in "ABTDI"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("A is warm.\nB is cold.\n\nVerdict: A", "A is warm.\nB is cold."),
        ("A is longer. B is right. Verdict: B", "A is longer. B is right."),
        ("<think>draft</think>\nB is safer.\nVerdict: B", "B is safer."),
        ("Kinder.\n**Verdict: B**\nAs asked:\nVerdict: B", "Kinder."),
        ('{"reason": "Kinder.", "verdict": "B"}', "Kinder."),
        ('Words before.\n{"verdict": "B"}', "Words before."),
        ("I cannot say.", "I cannot say."),
        ("Verdict: A", ""),
        (None, ""),
    ],
)
def test_the_reason_is_what_stands_before_the_verdict(reply: str | None, reason: str) -> None:
    assert read_reply(reply).reason == reason


@pytest.mark.parametrize(
    "reply",
    [
        "*" * 250_000,
        " \n" * 100_000 + "verdict",
        "verdict:" + " *" * 150_000,
        ("Verdict: " * 100_000),
        "{" * 100_000,
        "\n{" * 3_000,
        '{"a": ' * 20_000,
        ". verdict: " + "(" * 150_000,
    ],
)
def test_a_strange_reply_takes_no_time(reply: str) -> None:
    start = time.process_time()
    assert parse_verdict(reply) is INVALID
    assert time.process_time() - start < NO_END


def test_the_same_verdict_written_twice_counts_once() -> None:
    assert parse_verdict("**Verdict: B**\nIn the asked form:\nVerdict: B") is B


@pytest.mark.parametrize("verdict", list(Verdict))
def test_swapping_twice_gives_the_verdict_back(verdict: Verdict) -> None:
    assert verdict.swapped().swapped() is verdict


def test_a_swapped_reply_favours_the_other_output() -> None:
    assert [verdict.swapped() for verdict in (A, B, TIE, INVALID)] == [B, A, TIE, INVALID]


def test_a_verdict_is_written_to_json_as_its_label() -> None:
    assert json.dumps([A, B, TIE, INVALID]) == '["A", "B", "tie", "invalid"]'
