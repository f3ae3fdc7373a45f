"""Tools, tool calls, reasoning and arguments of the template reach it, or their row says why they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.data import prepare_preferences
from dynamic_dpo.data.pairing import read_row
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.tokenize import tokenize_pairs
from dynamic_dpo.data.turns.extras import join_extras, split_extras
from helpers_tokenizers import CHATML, make_tokenizer

# Writes tools, calls and reasoning in words, as templates of published models do in tags of their own.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\ntools"
    "{% for t in tools %} {{ t['function']['name'] }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('reasoning_content') %}think {{ m['reasoning_content'] }} done {% endif %}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}"
    " call {{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "no thoughts {% endif %}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}}}
TOOL = {"type": "function", "function": {"name": "weather"}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def texts_of(
    rows: list[dict[str, Any]], template: str = TEMPLATE, **options: Any
) -> list[tuple[str, str, str]]:
    tokenizer = make_tokenizer(chat_template=template)
    pairs, quarantine = to_preference_pairs(rows)
    found = tokenize_pairs(pairs, tokenizer, quarantine=quarantine, **options)
    assert len(found.quarantine) == 0, list(found.quarantine)
    return [
        tuple(tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))  # type: ignore[misc]
        for row in found.dataset
    ]


def test_all_of_a_message_reaches_the_template() -> None:
    row = {
        "prompt": [user("weather?")],
        "tools": [TOOL],
        "chosen": [bot("let me look", reasoning_content="need it", tool_calls=[CALL])],
        "rejected": [bot("no")],
    }
    plain = {"prompt": [user("hi")], "chosen": [bot("yes")], "rejected": [bot("no")]}
    [first, second] = texts_of([row, plain])
    assert "tools weather" in first[0]
    assert "think need it done" in first[1]
    assert "let me look call weather" in first[1]
    assert '"city": "Bern"' in first[1].replace('": "', '": "')
    assert "no" in first[2]
    assert "tools" not in second[0]


def test_thoughts_of_gpt_oss_reach_a_template_that_names_them_and_no_other() -> None:
    row = {"prompt": [user("?")], "chosen": [bot("yes", thinking="hm")], "rejected": [bot("no")]}
    named = TEMPLATE.replace("m.get('reasoning_content')", '"thinking" in m').replace(
        "m['reasoning_content']", "m.thinking"
    )
    [(_, chosen, rejected)] = texts_of([row], named)
    assert "think hm done yes" in chosen
    assert "think" not in rejected
    # A switch of that name is no place for the text.
    pairs, quarantine = to_preference_pairs([row, {**row, "chosen": [bot("yes")]}])
    speaks_of_it = TEMPLATE + "{# thinking may be switched off #}"
    assert "enable_thinking" in speaks_of_it
    found = tokenize_pairs(pairs, make_tokenizer(chat_template=speaks_of_it), quarantine=quarantine)
    assert [(entry.row, entry.reason) for entry in found.quarantine] == [(0, "template_without_field")]


def test_calls_alone_are_an_answer_and_the_turns_of_tools_are_not_scored() -> None:
    row = {
        "prompt": [user("weather?")],
        "chosen": [bot(None, tool_calls=[CALL]), {"role": "tool", "content": "rain"}, bot("It rains.")],
        "rejected": [bot("no idea")],
    }
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    pairs, quarantine = to_preference_pairs([row])
    [found] = tokenize_pairs(pairs, tokenizer, quarantine=quarantine).dataset
    scored = [
        token for token, is_scored in zip(found["chosen_ids"], found["chosen_mask"], strict=True) if is_scored
    ]
    written = tokenizer.decode(scored)
    assert "call weather" in written
    assert "It rains." in written
    assert "rain<" not in written


def test_answers_that_differ_in_their_calls_alone_are_two_answers() -> None:
    other = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    row = {
        "prompt": [user("?")],
        "chosen": [bot("", tool_calls=[CALL])],
        "rejected": [bot("", tool_calls=[other])],
    }
    [(_, chosen, rejected)] = texts_of([row])
    assert ("Bern" in chosen, "Rome" in rejected) == (True, True)


@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_of_the_template_come_from_the_setting_and_a_row_stands_over_it(as_text: bool) -> None:
    own: Any = {"enable_thinking": True}
    row = {"prompt": [user("hi")], "chosen": [bot("yes")], "rejected": [bot("no")]}
    rows = [row, {**row, "chat_template_kwargs": json.dumps(own) if as_text else own}]
    off, on = texts_of(rows, template_kwargs={"enable_thinking": False})
    assert ("no thoughts" in off[0] + off[1], "no thoughts" in on[0] + on[1]) == (False, False)
    # The generation prompt alone has the words, so the prompt ends before them, as it does for thoughtless models.
    tokenizer = make_tokenizer(
        chat_template=TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}")
    )
    pairs, quarantine = to_preference_pairs(rows)
    found = tokenize_pairs(
        pairs, tokenizer, quarantine=quarantine, template_kwargs={"enable_thinking": False}
    )
    shown = [tokenizer.decode([*one["prompt_ids"], *one["chosen_ids"]]) for one in found.dataset]
    assert [("no thoughts" in text) for text in shown] == [True, False]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"chosen": [bot("a", tool_calls=[CALL])]}, "tool_calls"),
        ({"chosen": [bot("a", reasoning_content="hm")]}, "reasoning_content"),
        ({"chosen": [bot("a", thinking="hm")]}, "thinking"),
    ],
)
def test_a_template_that_cannot_write_a_field_sets_the_row_aside(more: dict[str, Any], field: str) -> None:
    plain = {"prompt": [user("hi")], "chosen": [bot("yes")], "rejected": [bot("no")]}
    pairs, quarantine = to_preference_pairs([plain, {**plain, **more}])
    found = tokenize_pairs(pairs, make_tokenizer(chat_template=CHATML), quarantine=quarantine)
    [entry] = found.quarantine
    assert (entry.row, entry.reason) == (1, "template_without_field")
    assert entry.excerpt.startswith(field)
    assert len(found.dataset) == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": "not JSON"}, "bad_template_settings"),
        ({"tools": {"name": "w"}}, "bad_template_settings"),
        ({"chat_template_kwargs": [1]}, "bad_template_settings"),
        ({"chosen": [bot(None)]}, "bad_message"),
        ({"chosen": [bot("a", tool_calls="call")]}, "bad_message"),
        ({"chosen": [bot("a", reasoning_content=5)]}, "bad_message"),
        ({"chosen": [bot("a", thinking=["hm"])]}, "bad_message"),
    ],
)
def test_what_is_no_tool_call_or_setting_is_set_aside(more: dict[str, Any], reason: str) -> None:
    row = {"prompt": [user("hi")], "chosen": [bot("yes")], "rejected": [bot("no")], **more}
    with pytest.raises(BadRow, match=reason):
        read_row(row, "messages")


def test_plain_text_has_no_place_for_tools() -> None:
    with pytest.raises(BadRow, match="needs_template"):
        read_row({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [TOOL]}, "text")


def test_rows_without_extras_have_no_column_of_them() -> None:
    pairs, _ = to_preference_pairs(
        [{"prompt": [user("hi")], "chosen": [bot("yes")], "rejected": [bot("no")], "tools": []}]
    )
    assert pairs.column_names == ["prompt", "chosen", "rejected", "row"]


def test_extras_come_back_as_they_were() -> None:
    row = {
        "prompt": [user("?")],
        "chosen": [bot("", tool_calls=[CALL])],
        "rejected": [bot("no")],
        "tools": [TOOL],
    }
    read = read_row(row, "messages")
    bare, written = split_extras(read.pair, read.template)
    assert all(set(message) == {"role", "content"} for part in bare for message in part)
    assert join_extras(bare, written) == (read.pair, {"tools": [TOOL]})


def test_a_whole_preparation_takes_them_and_counts_none_as_unread(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [user(f"weather {n}?")],
            "tools": [TOOL],
            "chosen": [bot(None, tool_calls=[CALL])],
            "rejected": [bot("no")],
        }
        for n in range(6)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    found = prepare_preferences(str(path), tokenizer, val_ratio=0.5, seed=1)
    assert found.validation is not None
    assert len(found.train) + len(found.validation) == 6
    assert "unused" not in found.report["sources"][0]
