"""Truncation of one pair, with the numbers on the page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.truncate import LengthLimits, TokenPair, truncate_pair
from dynamic_dpo.errors import ConfigError

PAIR = TokenPair([1, 2, 3, 4], [5, 6, 7], [8, 9])
WITH_BOS = TokenPair([0, 1, 2, 3], [5, 6, 7], [8, 9])


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (LengthLimits(7), PAIR),
        (LengthLimits(6), ([1, 2, 3, 4], [5, 6], [8, 9])),
        (LengthLimits(5), ([1, 2, 3, 4], [5], [8])),
        (LengthLimits(7, max_prompt_length=2), ([3, 4], [5, 6, 7], [8, 9])),
        (LengthLimits(7, max_completion_length=2), ([1, 2, 3, 4], [5, 6], [8, 9])),
        (LengthLimits(4, 2, 1), ([3, 4], [5], [8])),
        (LengthLimits(6, truncation_mode="keep_end"), ([2, 3, 4], [5, 6, 7], [8, 9])),
        (LengthLimits(4, truncation_mode="keep_end"), ([4], [5, 6, 7], [8, 9])),
        (LengthLimits(3, truncation_mode="keep_end"), ([4], [5, 6], [8, 9])),
        (LengthLimits(5, max_completion_length=1, truncation_mode="keep_end"), ([1, 2, 3, 4], [5], [8])),
    ],
)
def test_pair_is_cut_where_the_mode_says(limits, expected):
    assert truncate_pair(PAIR, limits) == expected


@pytest.mark.parametrize(
    ("limits", "prompt"),
    [
        (LengthLimits(9, max_prompt_length=3), [0, 2, 3]),
        (LengthLimits(9, max_prompt_length=2), [0, 3]),
        (LengthLimits(9, max_prompt_length=1), [3]),
        (LengthLimits(6, truncation_mode="keep_end"), [0, 2, 3]),
    ],
)
def test_bos_stays_first_when_the_prompt_is_cut_from_the_left(limits, prompt):
    assert truncate_pair(WITH_BOS, limits, bos=0).prompt == prompt


def test_prompt_that_fills_the_length_is_a_bad_row_in_keep_start_only():
    with pytest.raises(BadRow, match="prompt_fills_max_length"):
        truncate_pair(PAIR, LengthLimits(4))
    assert truncate_pair(PAIR, LengthLimits(4, truncation_mode="keep_end"))


def test_pair_that_truncation_made_equal_is_a_bad_row():
    pair = TokenPair([1], [5, 6, 7], [5, 6, 8])
    with pytest.raises(BadRow, match="identical_after_truncation"):
        truncate_pair(pair, LengthLimits(3))
    with pytest.raises(BadRow, match="identical_after_truncation"):
        truncate_pair(pair, LengthLimits(9, max_completion_length=2))


def test_pair_that_was_equal_before_is_said_to_be_identical():
    with pytest.raises(BadRow, match="identical_answers"):
        truncate_pair(TokenPair([1], [5], [5]), LengthLimits(9))


ids = st.lists(st.integers(10, 99), min_size=1, max_size=9)
pairs = st.builds(TokenPair, ids, ids, ids)


@given(pairs, st.integers(2, 20))
def test_keep_start_equals_trl(pair, max_length):
    """TRL drops prompts of max_length or more and cuts both sequences on the right."""
    try:
        ours = truncate_pair(pair, LengthLimits(max_length))
    except BadRow as bad:
        ours = bad.reason
    if len(pair.prompt) >= max_length:
        assert ours == "prompt_fills_max_length"
        return
    example = {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
    batch = DataCollatorForPreference(pad_token_id=0, max_length=max_length)([example])
    kept = [
        row[mask.bool()].tolist()
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    if kept[0] == kept[1]:
        assert ours in ("identical_answers", "identical_after_truncation")
    else:
        assert kept == [ours.prompt + ours.chosen, ours.prompt + ours.rejected]


@given(
    pairs,
    st.integers(2, 20),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 9),
    st.sampled_from(["keep_start", "keep_end"]),
)
def test_no_limit_is_ever_exceeded_and_nothing_is_emptied(pair, length, prompt, completion, mode):
    limits = LengthLimits(length, prompt, completion, mode)
    try:
        cut = truncate_pair(pair, limits)
    except BadRow:
        return
    assert 1 <= len(cut.prompt) <= (prompt or 99)
    for before, after in zip(pair[1:], cut[1:], strict=True):
        assert 1 <= len(after) <= (completion or 99)
        assert len(cut.prompt) + len(after) <= length
        assert before[: len(after)] == after
    assert pair.prompt[len(pair.prompt) - len(cut.prompt) :] == cut.prompt


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 9, "max_prompt_length": 0}, "max_prompt_length must be at least 1"),
        ({"max_length": 9, "max_completion_length": -1}, "max_completion_length must be at least 1"),
        ({"max_length": 9, "truncation_mode": "middle"}, "keep_start, keep_end, got 'middle'"),
    ],
)
def test_impossible_limits_are_errors(limits, message):
    with pytest.raises(ConfigError, match=message):
        LengthLimits(**limits)
