"""Posts and reference summaries: fields, samples, ids."""

import json
import logging

import pytest

from dynamic_dpo.data.tldr_dataset import load_tldr_dataset
from dynamic_dpo.errors import ConfigError, DataError

ROWS = [{"post": f"post {i}", "summary": f"summary {i}", "subreddit": "a", "n": i} for i in range(40)]


@pytest.fixture
def write(tmp_path):
    def write(rows, name="posts.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_posts_have_content_ids_and_their_summaries(write):
    dataset = load_tldr_dataset(write(ROWS))
    assert dataset.column_names == ["id", "post", "summary"]
    assert {row["post"]: row["summary"] for row in dataset} == {r["post"]: r["summary"] for r in ROWS}
    assert len(set(dataset["id"])) == 40


def test_ids_do_not_depend_on_place_or_seed(write):
    first = load_tldr_dataset(write(ROWS))
    second = load_tldr_dataset(write(ROWS[::-1], "reversed.jsonl"), seed=7)
    assert dict(zip(first["post"], first["id"], strict=True)) == dict(
        zip(second["post"], second["id"], strict=True)
    )


def test_sample_is_seeded_independent_of_order_and_not_the_first_rows(write):
    sample = load_tldr_dataset(write(ROWS), max_samples=10)[:]
    assert load_tldr_dataset(write(ROWS[::-1], "reversed.jsonl"), max_samples=10)[:] == sample
    assert set(sample["post"]) != {row["post"] for row in ROWS[:10]}
    assert load_tldr_dataset(write(ROWS), max_samples=10, seed=1)[:] != sample


def test_larger_sample_begins_with_the_smaller(write):
    small, large = (load_tldr_dataset(write(ROWS), max_samples=n)["id"][:] for n in (5, 20))
    assert large[:5] == small


def test_split_is_sliced_before_the_sample(write):
    assert len(load_tldr_dataset(write(ROWS), split="train[:25%]", max_samples=99)) == 10


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"content": "p", "summary": "s"}, {}),
        ({"prompt": "p", "label": "s"}, {}),
        ({"prompt": "p", "completion": "s"}, {}),
        ({"info": {"post": "p"}, "summary": "s"}, {}),
        ({"a.b": "p", "c": {"d": "s"}}, {"post_field": "a.b", "summary_field": "c.d"}),
    ],
)
def test_fields_are_found_or_given(write, row, options):
    dataset = load_tldr_dataset(write([row]), **options)
    assert (dataset[0]["post"], dataset[0]["summary"]) == ("p", "s")


def test_id_and_meta_fields_are_kept(write):
    rows = [row | {"info": {"score": i}} for i, row in enumerate(ROWS[:3])]
    dataset = load_tldr_dataset(write(rows), id_field="n", meta_fields=["subreddit", "info.score"])
    assert sorted(dataset["id"]) == ["0", "1", "2"]
    assert sorted(dataset["score"]) == [0, 1, 2]
    assert set(dataset["subreddit"]) == {"a"}


def test_unusable_and_repeated_posts_are_logged_and_left_out(write, caplog):
    rows = [*ROWS[:2], ROWS[0], {"post": "p"}, {"post": "p", "summary": 5}, {"post": "", "summary": "s"}, 7]
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        assert len(load_tldr_dataset(write(rows))) == 2
    assert "5 of 7 rows" in caplog.text
    for reason in ("duplicate_id 1", "missing_field 2", "not_text 1", "not_an_object 1"):
        assert reason in caplog.text


def test_missing_id_is_a_bad_row(write):
    rows = [ROWS[0], {"post": "p", "summary": "s"}]
    assert len(load_tldr_dataset(write(rows), id_field="n")) == 1


def test_no_usable_row_is_an_error(write):
    with pytest.raises(DataError, match="missing_field 3"):
        load_tldr_dataset(write([{"post": "p", "summary": ""}] * 3))


def test_field_that_cannot_be_found_is_an_error_that_names_the_option(write):
    with pytest.raises(DataError, match=r"only \['headline', 'post'\]: set summary_field"):
        load_tldr_dataset(write([{"post": "p", "headline": "s"}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_samples": 0}, "max_samples must be at least 1"),
        ({"meta_fields": ["n", "info.n"]}, "the column 'n' twice"),
        ({"meta_fields": ["summary"]}, "the column 'summary' twice"),
    ],
)
def test_impossible_options_are_errors(write, options, message):
    with pytest.raises(ConfigError, match=message):
        load_tldr_dataset(write(ROWS), **options)
