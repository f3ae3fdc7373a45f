"""Reading rows as pairs: every shape, every reason, nothing lost."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.data_utils import extract_prompt

from dynamic_dpo.data import arrow
from dynamic_dpo.data.arrow import as_dataset
from dynamic_dpo.data.pairing import ROW_KINDS, common_text_prompt, detect_kind, read_pair
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.quarantine import REASONS, BadRow
from dynamic_dpo.errors import DataError

USER = {"role": "user", "content": "Q"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
CONVERSATION = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
TEXT = {"prompt": "Q", "chosen": " yes", "rejected": " no"}
IDS = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}

SHAPES = {
    "hh": (HH, {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " yes", "rejected": " no"}),
    "hh with a repeated prompt": (
        HH | {"prompt": "Q"},
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " yes", "rejected": " no"},
    ),
    "text": (TEXT, TEXT),
    "text without prompt": ({"chosen": "Q yes", "rejected": "Q no"}, TEXT),
    "conversation": (CONVERSATION, CONVERSATION),
    "conversation with text answers": (CONVERSATION | {"chosen": "yes", "rejected": "no"}, CONVERSATION),
    "conversation without prompt": ({"chosen": [USER, YES], "rejected": [USER, NO]}, CONVERSATION),
    "conversation with the prompt as text": (
        {"prompt": "Q", "chosen": [USER, YES], "rejected": [USER, NO]},
        CONVERSATION,
    ),
    "answers that repeat the prompt": (
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        CONVERSATION,
    ),
    "content in parts": (
        CONVERSATION
        | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}], "name": "x"}]},
        CONVERSATION,
    ),
    "rollout": (
        {"prompt_messages": [USER], "chosen": "yes", "rejected": "no", "metadata": {"k": 1}},
        CONVERSATION,
    ),
    "rollout with sampled ids": (
        {
            "prompt_messages": [USER],
            "chosen": "yes",
            "rejected": "no",
            "chosen_ids": [4],
            "rejected_ids": [5],
        },
        CONVERSATION | {"chosen_ids": [4], "rejected_ids": [5]},
    ),
    "token ids": (IDS, IDS),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", ["json", "arrow"])
def test_every_shape_gives_the_canonical_columns(shape, stored):
    row, expected = SHAPES[shape]
    rows = [row] if stored == "json" else Dataset.from_list([row])
    pairs, quarantine = to_preference_pairs(rows)
    assert pairs[0] == {**expected, "row": 0}
    assert len(quarantine) == 0


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (HH, [USER]),
        (TEXT, [USER]),
        (
            TEXT | {"prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: Q\n\nAssistant:"},
            [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, USER],
        ),
        (CONVERSATION, [USER]),
    ],
    ids=["hh", "text", "tagged text", "conversation"],
)
def test_chat_template_gives_text_rows_as_messages(row, prompt):
    pairs, _ = to_preference_pairs([row], chat_template=True)
    assert pairs[0] == {"prompt": prompt, "chosen": [YES], "rejected": [NO], "row": 0}


BAD = {
    "not_an_object": ("text", [1, 2]),
    "missing_field": ("text", {"prompt": "Q", "chosen": "yes", "rejected": None}),
    "not_text": ("hh", {"chosen": HH["chosen"], "rejected": 3}),
    "bad_message": ("messages", CONVERSATION | {"chosen": [{"role": "assistant"}]}),
    "has_images": ("text", TEXT | {"images": [{"path": "cat.png", "bytes": None}]}),
    "bad_token_ids": ("token_ids", IDS | {"chosen_ids": [1, -1]}),
    "no_assistant_turn": ("hh", {"chosen": "\n\nHuman: Q", "rejected": "x"}),
    "no_common_prompt": ("hh", HH | {"rejected": "\n\nHuman: other\n\nAssistant: no"}),
    "answer_not_assistant": ("messages", CONVERSATION | {"chosen": [USER | {"content": "more"}]}),
    "empty_prompt": ("text", TEXT | {"prompt": " \n"}),
    "empty_chosen": ("text", TEXT | {"chosen": ""}),
    "empty_rejected": ("hh", HH | {"rejected": "\n\nHuman: Q\n\nAssistant: "}),
    "identical_answers": ("text", TEXT | {"chosen": " no"}),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_row_is_named_by_its_reason(reason):
    kind, row = BAD[reason]
    with pytest.raises(BadRow) as caught:
        read_pair(row, kind)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "kind", "row"),
    [
        ("not_text", "text", TEXT | {"chosen": "half a pair \ud83d"}),
        ("not_text", "messages", CONVERSATION | {"chosen": "\ud83d"}),
        ("bad_message", "messages", CONVERSATION | {"prompt": ["Q"]}),
        ("bad_message", "messages", CONVERSATION | {"chosen": 5}),
        ("bad_message", "messages", CONVERSATION | {"chosen": [{"role": "", "content": "x"}]}),
        (
            "has_images",
            "messages",
            CONVERSATION | {"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
        ),
        (
            "has_images",
            "messages",
            CONVERSATION | {"prompt": [USER, {"role": "user", "content": [{"type": "video"}]}]},
        ),
        ("has_images", "token_ids", IDS | {"image": b"GIF89a"}),
        ("bad_token_ids", "token_ids", IDS | {"prompt_ids": "12"}),
        ("bad_token_ids", "token_ids", IDS | {"prompt_ids": [True]}),
        ("bad_token_ids", "token_ids", IDS | {"prompt_ids": [2**31]}),
        ("empty_chosen", "token_ids", IDS | {"chosen_ids": []}),
        ("identical_answers", "token_ids", IDS | {"chosen_ids": [3]}),
        ("empty_prompt", "hh", {k: v.removeprefix("\n\nHuman: Q") for k, v in HH.items()}),
        ("empty_prompt", "messages", CONVERSATION | {"prompt": []}),
        ("no_common_prompt", "messages", {"chosen": [USER, YES], "rejected": [NO]}),
        ("no_common_prompt", "text", {"chosen": "great", "rejected": "green"}),
        ("empty_rejected", "text", {"chosen": "Q yes", "rejected": "Q"}),
        ("empty_chosen", "text", {"chosen": " ", "rejected": "Q"}),
        ("identical_answers", "text", {"chosen": "Q yes", "rejected": "Q yes"}),
        ("identical_answers", "messages", {"chosen": [USER, YES], "rejected": [USER, YES]}),
        ("empty_rejected", "messages", {"chosen": [USER, YES], "rejected": [USER]}),
        ("missing_field", "rollouts", {"prompt_messages": [USER], "chosen": "yes"}),
    ],
)
def test_less_obvious_bad_rows(reason, kind, row):
    with pytest.raises(BadRow) as caught:
        read_pair(row, kind)
    assert caught.value.reason == reason


def test_plain_text_without_prompt_field_is_no_chat_message():
    with pytest.raises(DataError, match=r"missing_field.*prompt is missing"):
        to_preference_pairs([{"chosen": "Q yes", "rejected": "Q no"}], chat_template=True)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("It is great", "It is green", "It is"),
        ("Say:\nyes", "Say:\nno", "Say:\n"),
        ("a b", "a b c", "a b"),
        ("don't", "dont", ""),
        ("天空是蓝色", "天空是绿色", "天空是"),
        ("x = 12", "x = 13", "x ="),
        ("abc", "xyz", ""),
    ],
)
def test_implicit_text_prompt_ends_at_a_word_boundary(chosen, rejected, prompt):
    assert common_text_prompt(chosen, rejected) == prompt


words = st.lists(st.sampled_from(["sky", "is", "a", "blue", "Go.", "12"]), min_size=1, max_size=6)


@given(words, words, words)
def test_implicit_prompt_equals_trl_where_answers_part_at_a_word(prompt, first, second):
    chosen, rejected = (" ".join([*prompt, *answer]) for answer in (first, second))
    if first[0][0] == second[0][0]:  # The words themselves share a beginning.
        return
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert read_pair({"chosen": chosen, "rejected": rejected}, "text")._asdict() == theirs


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_implicit_prompt_and_answers_join_to_the_whole_texts(common, first, second):
    prompt = common_text_prompt(common + first, common + second)
    assert (common + first).startswith(prompt)
    assert (common + second).startswith(prompt)


def test_swapped_rows_give_swapped_pairs():
    for row, _ in SHAPES.values():
        suffix = "_ids" if "prompt_ids" in row else ""
        c, r = f"chosen{suffix}", f"rejected{suffix}"
        kind = detect_kind(row)
        pair = read_pair(row, kind)
        swapped = read_pair(row | {c: row[r], r: row[c]}, kind)
        assert swapped[:3] == (pair.prompt, pair.rejected, pair.chosen)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "chosen", "rejected", "role", "content", "prompt_messages", "prompt_ids"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(anything, st.sampled_from(list(ROW_KINDS)), st.booleans())
def test_any_json_value_is_a_pair_or_a_known_reason(row, kind, as_messages):
    reason = pair = None
    try:
        pair = read_pair(row, kind, as_messages=as_messages)
    except BadRow as bad:
        reason = bad.reason
    assert (pair is None) == (reason in REASONS)
    assert pair is None or (pair.chosen != pair.rejected and all(pair[1:]))


@settings(max_examples=25, deadline=None)
@given(st.lists(anything | st.just(TEXT), max_size=8))
def test_kept_and_quarantined_rows_are_all_rows(rows):
    pairs, quarantine = to_preference_pairs([*rows, TEXT], kind="text")
    assert sorted([*pairs["row"], *(entry.row for entry in quarantine)]) == list(range(len(rows) + 1))


def test_bad_rows_come_back_from_worker_processes(monkeypatch):
    monkeypatch.setattr(arrow, "_MIN_ROWS_PER_PROCESS", 1)
    rows = [HH if i % 3 else {"chosen": 5} for i in range(30)]
    pairs, quarantine = to_preference_pairs(rows, kind="hh", num_proc=2)
    assert pairs["row"][:] == [i for i in range(30) if i % 3]
    assert [entry.row for entry in quarantine] == [i for i in range(30) if not i % 3]


def test_kind_is_that_of_most_first_rows_and_the_others_are_quarantined():
    pairs, quarantine = to_preference_pairs([CONVERSATION, HH, HH, {"chosen": "x"}])
    assert pairs["row"][:] == [1, 2]
    assert quarantine.counts() == {"not_text": 1, "missing_field": 1}


def test_broken_lines_are_counted_with_the_rows():
    lines = [json.dumps(HH).encode(), b"{broken", b'"text"']
    pairs, quarantine = to_preference_pairs(arrow.write_json_lines(lines))
    assert len(pairs) == 1
    assert quarantine.counts() == {"not_json": 1, "not_an_object": 1}


def test_rows_that_json_cannot_hold_are_bad_rows_not_crashes():
    _, quarantine = to_preference_pairs([TEXT, {"prompt": {1, 2}, "chosen": "a", "rejected": "b"}, object()])
    assert quarantine.counts() == {"not_text": 1, "missing_field": 1}


def test_arrays_of_token_ids_are_read_as_lists():
    pairs, _ = to_preference_pairs([{name: np.array(ids) for name, ids in IDS.items()}])
    assert pairs[0] == {**IDS, "row": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows were given"),
        ([{"question": "Q", "answer": "A"}], r"fields \['answer', 'question'\]"),
        ([5], "row 0: 5"),
        ([{**TEXT, "chosen": ""}], "empty_chosen"),
    ],
)
def test_rows_without_any_pair_are_an_error_that_shows_one(rows, message):
    with pytest.raises(DataError, match=message):
        to_preference_pairs(rows)


def test_file_that_is_no_json_at_all_is_an_error():
    with pytest.raises(DataError, match="not_json"):
        to_preference_pairs(arrow.write_json_lines([b"one", b"two"]))


def test_unknown_kind_is_an_error_that_lists_the_known_ones():
    with pytest.raises(DataError, match=", ".join(map(repr, ROW_KINDS))):
        to_preference_pairs([HH], kind="html")


def test_dataset_is_passed_through_as_it_is():
    dataset = Dataset.from_list([HH])
    assert as_dataset(dataset) is dataset


def test_empty_columns_of_images_are_none():
    assert read_pair(TEXT | {"images": [], "video": None}, "text") == read_pair(TEXT, "text")
