from __future__ import annotations

import pytest

from dynamic_dpo.eval.judges.turns.grades import read_grade


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Rating: [[5]]", 5.0),
        ("It is right.\n\nRating: [[10]]", 10.0),
        ("**Rating: [[7.5]]**", 7.5),
        ("Rating: [[ 8 ]] because it is short", 8.0),
        ("[[6/10]]", 6.0),
        ("Rating: [[3]]\nAs asked: [[3]]", 3.0),
        ("<think>[[9]]?</think>Rating: [[4]]", 4.0),
        ("See source [2]. Rating: [6]", 6.0),
        ("As in the matrix [[1, 2]], rating: [[2]]", 2.0),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("Rating: [[-3]]", None),
        ("Rating: [[4]] or [[5]]", None),
        ("Rating: 5", None),
        ("Source [5] says so.", None),
        ("<think>Rating: [[5]]", None),
        ("Rating: [[five]]", None),
        ("", None),
        (None, None),
    ],
)
def test_a_grade_is_one_number_from_1_to_10_in_brackets(reply: str | None, grade: float | None) -> None:
    assert read_grade(reply).grade == grade


def test_the_reason_is_what_stands_before_the_grade() -> None:
    assert read_grade("Short but right. [[8]]").reason == "Short but right."
    assert read_grade("I cannot say.").reason == "I cannot say."
