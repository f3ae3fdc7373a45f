"""Prompts of several turns: which rows have them, what they are named by, and what a model is asked next."""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.eval.prompts.rows import PromptFields, read_prompt
from dynamic_dpo.eval.prompts.turns import references_of, turn_prompt, turns_of

ALL = PromptFields(turns=True)


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 81, "category": "math", "turns": ["One?", "Two?"], "reference": ["1.", "2."]},
        {"prompt_id": 81, "category": "math", "prompt": ["One?", "Two?"], "reference": ["1.", "2."]},
        {"category": "math", "turns": [{"content": "One?"}, {"content": "Two?"}], "references": ["1.", "2."]},
    ],
)
def test_published_rows_give_all_their_turns_and_right_answers(row: dict[str, Any]) -> None:
    prompt = read_prompt(row, ALL)
    assert [message["content"] for message in prompt.messages] == ["One?"]
    assert turns_of(prompt) == ["One?", "Two?"]
    assert (references_of(prompt, 1), references_of(prompt, 2)) == (["1."], ["1.", "2."])
    assert prompt.category == "math"
    # Without the setting a row is its first turn, as before.
    assert turns_of(read_prompt(row)) == ["One?"]


def test_prompts_with_one_first_turn_and_another_second_are_two() -> None:
    first, second = (read_prompt({"turns": ["One?", text]}, ALL) for text in ("Two?", "Three?"))
    assert first.id != second.id
    assert first.messages == second.messages
    # A single turn is the prompt that it would be without the setting.
    assert read_prompt({"turns": ["One?"]}, ALL).id == read_prompt({"turns": ["One?"]}).id
    assert read_prompt({"prompt": "One?"}, ALL).id == read_prompt({"prompt": "One?"}).id


def test_right_answers_count_only_where_none_is_missing() -> None:
    prompt = read_prompt({"turns": ["One?", "Two?"], "reference": ["1.", " "]}, ALL)
    assert (references_of(prompt, 1), references_of(prompt, 2)) == (["1."], [])
    assert references_of(read_prompt({"turns": ["One?", "Two?"], "reference": []}, ALL), 1) == []


def test_the_next_turn_is_named_by_the_conversation_so_far() -> None:
    prompt = read_prompt({"turns": ["One?", "Two?"]}, ALL)
    asked = [turn_prompt(prompt, answers) for answers in ([], ["a"], ["b"])]
    assert len({record.id for record in asked}) == 3
    assert [message["role"] for message in asked[1].messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize("turns", [["One?", " "], ["One?", 2], [None, "Two?"]])
def test_a_turn_that_is_no_text_makes_a_bad_row(turns: list[Any]) -> None:
    with pytest.raises(BadRow):
        read_prompt({"turns": turns}, ALL)
