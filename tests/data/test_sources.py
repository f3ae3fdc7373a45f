"""Loading rows: every format, the same slices, damaged files."""

import gzip
import json
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.data import json_files, sources
from dynamic_dpo.data.arrow import iter_rows
from dynamic_dpo.data.json_files import read_json_rows
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.sources import load_evaluation_rows, load_rows
from dynamic_dpo.errors import DataError

ROWS = [{"chosen": f"c{i}", "rejected": f"r{i}"} for i in range(10)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(folder, name, rows=ROWS):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    elif name.endswith(".jsonl"):
        path.write_text(lines)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def rows_of(*args, **kwargs):
    return list(iter_rows(load_rows(*args, **kwargs)))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet", "saved"])
@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("train", ROWS),
        ("train[:30%]", ROWS[:3]),
        ("train[2:4]", ROWS[2:4]),
        ("train[-10%:]", ROWS[-1:]),
        ("train[:2]+train[8:]", ROWS[:2] + ROWS[8:]),
    ],
)
def test_every_format_gives_the_same_rows_for_the_same_slice(tmp_path, name, subset, expected):
    assert rows_of(write(tmp_path, name), subset=subset) == expected


@pytest.mark.parametrize("split", ["train", "validation", "test", "all"])
def test_a_single_file_goes_by_every_split_name(tmp_path, split):
    assert rows_of(write(tmp_path, "a.jsonl"), subset=f"{split}[:1]") == ROWS[:1]


def test_json_lines_may_be_called_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(LINES)
    assert rows_of(str(path)) == ROWS


def test_split_names_of_a_folder_are_honoured(tmp_path):
    write(tmp_path, "train-1.jsonl.gz", ROWS[4:6])
    write(tmp_path, "train-0.jsonl", ROWS[:4])
    write(tmp_path, "my_valid.jsonl", ROWS[6:7])
    write(tmp_path, "data/test-00000-of-00001.json", ROWS[7:])
    write(tmp_path, "notes.jsonl", [{"a": 1}])
    write(tmp_path, ".hidden/train.jsonl", [{"a": 1}])
    assert rows_of(str(tmp_path)) == ROWS[:6]
    assert rows_of(str(tmp_path), subset="validation") == ROWS[6:7]
    assert rows_of(str(tmp_path), subset="test[1:]") == ROWS[8:]
    assert len(rows_of(str(tmp_path), subset="all")) == 10


def test_files_of_a_folder_without_split_names_are_the_training_set(tmp_path):
    write(tmp_path, "a.parquet", ROWS[:5])
    write(tmp_path, "b.parquet", ROWS[5:])
    assert rows_of(str(tmp_path), subset="train[4:6]") == ROWS[4:6]


def test_saved_dataset_keeps_its_splits(tmp_path):
    parts = DatasetDict(train=Dataset.from_list(ROWS[:8]), test=Dataset.from_list(ROWS[8:]))
    parts.save_to_disk(tmp_path / "saved")
    assert rows_of(str(tmp_path / "saved"), subset="test") == ROWS[8:]


def test_fields_of_mixed_types_are_kept_as_they_are(tmp_path):
    rows = [{"a": "x"}, {"a": 5}, {"a": ["x", 1]}, {"b": {"c": None}}, {}]
    assert rows_of(write(tmp_path, "a.jsonl", rows)) == rows


def test_broken_lines_are_single_bad_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \nnonsense\n  \n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}')
    rows = rows_of(str(path))
    assert [row.reason if isinstance(row, BadRow) else row for row in rows] == [
        {"a": 1},
        "not_json",
        "not_json",
        "not_json",
        "not_json",
        {"a": 2},
    ]


def test_byte_order_mark_is_ignored(tmp_path):
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    array.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    assert rows_of(str(lines)) == rows_of(str(array)) == ROWS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]))
def test_array_elements_do_not_depend_on_how_the_file_is_read(tmp_path_factory, values, chunk, indent):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK", chunk)
        assert [json.loads(row) for row in read_json_rows(path)] == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a": ', "broken or cut off in element 1"),
        ('[{"a": 1} {"a": 2}]', "without ',' or ']' after element 0"),
        ('[{"a": 1}', "without ',' or ']' after element 0"),
        ("[", "broken or cut off in element 0"),
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_damaged_and_empty_files_are_errors(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_rows(str(path))


def test_cut_off_gzip_is_an_error_that_says_how_far_it_goes(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(DataError, match="cannot be read beyond row"):
        load_rows(str(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_file_of_another_kind_under_a_known_name_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("certainly not that")
    with pytest.raises(DataError, match=r"cannot be read beyond row 0|not a readable \.parquet"):
        load_rows(str(tmp_path / name))


def test_parquet_without_rows_is_an_error(tmp_path):
    Dataset.from_dict({"chosen": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is empty"):
        load_rows(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/where", "~/missing/folder"])
def test_missing_path_is_an_error_and_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(sources, "load_dataset", None)
    with pytest.raises(DataError, match="no file or folder"):
        load_rows(name)


def test_unknown_kind_of_file_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"\.parquet"):
        load_rows(str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match="holds no"):
        load_rows(str(tmp_path))


def test_split_of_mixed_formats_is_an_error(tmp_path):
    write(tmp_path, "train-0.parquet")
    write(tmp_path, "train-1.jsonl")
    with pytest.raises(DataError, match="mixes"):
        load_rows(str(tmp_path))


def test_damaged_saved_dataset_is_an_error(tmp_path):
    write(tmp_path, "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="saved dataset"):
        load_rows(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("test", "has no split 'test', only 'train', 'validation'"),
        ("train[:x]", "not understood"),
        ("[:5]", "not understood"),
        ("train[:150%]", "not understood"),
        ("train[:0]", "selects no rows"),
        ("train[8:2]", "selects no rows"),
        ("train[99:]", "selects no rows"),
    ],
)
def test_impossible_subsets_are_errors_that_show_how_to_write_one(tmp_path, subset, message):
    write(tmp_path, "train.jsonl")
    write(tmp_path, "validation.jsonl", ROWS[:2])
    with pytest.raises(DataError, match=message):
        load_rows(str(tmp_path), subset=subset)


def test_other_names_are_hub_datasets(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(sources, "load_dataset", load)
    assert rows_of("org/name", subset="train[:30%]", config_name="en") == ROWS
    assert asked == [(("org/name", "en"), {"split": "train[:30%]"})]


def test_hub_failures_are_data_errors(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(sources, "load_dataset", load)
    monkeypatch.setattr(sources, "get_dataset_split_names", load)
    for read in (load_rows, load_evaluation_rows):
        with pytest.raises(DataError, match="no network"):
            read("org/name")


def test_evaluation_rows_are_the_validation_part_of_a_folder_or_all_of_a_file(tmp_path):
    file = write(tmp_path, "train.jsonl")
    write(tmp_path, "dev.jsonl", ROWS[:2])
    assert list(iter_rows(load_evaluation_rows(str(tmp_path)))) == ROWS[:2]
    assert list(iter_rows(load_evaluation_rows(file))) == ROWS


def test_evaluation_rows_of_a_hub_set_are_its_test_split_where_it_has_no_validation(monkeypatch):
    monkeypatch.setattr(sources, "get_dataset_split_names", lambda name: ["train", "test"])
    monkeypatch.setattr(
        sources, "load_dataset", lambda name, config, split: Dataset.from_dict({"s": [split]})
    )
    assert load_evaluation_rows("org/name")["s"][:] == ["test"]


def test_evaluation_rows_need_a_known_split(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "get_dataset_split_names", lambda name: ["extra"])
    with pytest.raises(DataError, match="only 'extra'"):
        load_evaluation_rows("org/name")
    with pytest.raises(DataError, match="no file or folder"):
        load_evaluation_rows(str(tmp_path / "missing.jsonl"))


def test_importing_the_package_does_not_load_the_datasets_library():
    code = (
        "import sys, dynamic_dpo.data as d; "
        "assert not {'datasets', 'transformers', 'torch', 'pyarrow'} & set(sys.modules), sorted(sys.modules); "
        "assert 'load_rows' in dir(d)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_of_the_package_is_an_attribute_error():
    import dynamic_dpo.data

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dynamic_dpo.data.no_such_name


def test_of_a_rollouts_folder_the_pairs_alone_are_read(tmp_path):
    write(tmp_path, "pairs.jsonl")
    for name in ("outputs.jsonl", "scores.jsonl", "prompts.jsonl", "test.jsonl"):
        write(tmp_path, name, [{"other": name}])
    assert {"other": "test.jsonl"} in rows_of(str(tmp_path), subset="all")
    write(tmp_path, "manifest.json", [{"other": "manifest.json"}])
    assert rows_of(str(tmp_path), subset="train") == ROWS
    assert rows_of(str(tmp_path), subset="train[:30%]") == ROWS[:3]
    assert list(iter_rows(load_evaluation_rows(str(tmp_path)))) == ROWS
