"""Splits by prompt: no leak, no drift, both sides filled."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.data.split import prompt_keys, split_by_prompt
from dynamic_dpo.errors import ConfigError, DataError

TEXT = [f"prompt {i % 500}" for i in range(2000)]
FORMS = {
    "text": ("prompt", TEXT),
    "messages": ("prompt", [[{"role": "user", "content": text}] for text in TEXT]),
    "token ids": ("prompt_ids", [[i % 500, 1] for i in range(2000)]),
}


def split(prompts, name="prompt", **options):
    rows = Dataset.from_dict({name: prompts, "n": range(len(prompts))})
    return split_by_prompt(rows, **{"val_ratio": 0.1, "seed": 0, **options})


@pytest.mark.parametrize("form", FORMS)
def test_no_prompt_is_on_both_sides_and_no_row_is_lost(form):
    name, prompts = FORMS[form]
    train, validation = split(prompts, name)
    assert not prompt_keys(train) & prompt_keys(validation)
    assert sorted([*train["n"], *validation["n"]]) == list(range(2000))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("val_ratio", [0.05, 0.1, 0.5])
def test_share_is_close_to_the_ratio(form, val_ratio):
    """500 prompts: three standard deviations are 3 * sqrt(ratio * (1 - ratio) / 500)."""
    name, prompts = FORMS[form]
    _, validation = split(prompts, name, val_ratio=val_ratio)
    spread = 3 * (val_ratio * (1 - val_ratio) / 500) ** 0.5
    assert abs(len(validation) / 2000 - val_ratio) < spread


def test_rows_keep_their_order():
    train, validation = split(TEXT)
    assert train["n"][:] == sorted(train["n"])
    assert validation["n"][:] == sorted(validation["n"])


def test_a_prompt_stays_on_its_side_when_rows_are_added_or_reordered():
    few = set(split(TEXT[:300]).validation["prompt"])
    more = set(split([*reversed(TEXT), *(f"new {i}" for i in range(100))]).validation["prompt"])
    assert few == more & set(TEXT[:300])


def test_a_larger_ratio_extends_the_validation_set():
    small, large = (set(split(TEXT, val_ratio=ratio).validation["prompt"]) for ratio in (0.1, 0.3))
    assert small < large


def test_another_seed_is_another_split():
    first, second = (set(split(TEXT, seed=seed).validation["prompt"]) for seed in (0, 1))
    assert len(first & second) < len(first) / 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=8),
    st.floats(0.001, 0.999),
    st.integers(0, 50),
)
def test_both_sides_have_a_prompt_whenever_there_are_two(prompts, val_ratio, seed):
    train, validation = split(prompts, val_ratio=val_ratio, seed=seed)
    if len(set(prompts)) == 1:
        assert validation is None
        assert len(train) == len(prompts)
    else:
        assert set(train["prompt"]).isdisjoint(validation["prompt"])
        assert len(train) > 0
        assert len(validation) > 0


def test_ratio_zero_validates_on_nothing():
    train, validation = split(TEXT, val_ratio=0)
    assert validation is None
    assert len(train) == 2000


@pytest.mark.parametrize("val_ratio", [-0.1, 1, 1.5])
def test_ratio_out_of_range_is_an_error(val_ratio):
    with pytest.raises(ConfigError, match=r"val_ratio must lie in \[0, 1\)"):
        split(TEXT, val_ratio=val_ratio)


def test_rows_without_prompt_are_an_error():
    with pytest.raises(DataError, match=r"\['question', 'n'\]"):
        split(TEXT, "question")
