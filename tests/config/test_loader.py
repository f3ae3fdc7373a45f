"""YAML files and overrides: what they mean, what they refuse, and that writing and reading agree."""

import copy
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dynamic_dpo.config import apply_overrides, dump_yaml, load_yaml
from dynamic_dpo.errors import ConfigError

# Text that YAML can hold at all: control characters and halves of surrogate pairs are not text.
TEXT = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff\ufffe\uffff"), max_size=12
)
LOOKS_LIKE_SOMETHING_ELSE = st.sampled_from(
    ["1e3", "5e-7", ".5", "1.", "+1", "1_000", "0x1F", "010", ".inf", ".nan", "12:30", "2024-01-31",
     "no", "true", "null", "~", "<<", "=", "-", "#a", "*a", "&a", "!a", "'", '"', "[", "{a}",
     "", " a ", "a: b", "a\nb\n", "\t"]
)  # fmt: skip
NUMBERS = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | LOOKS_LIKE_SOMETHING_ELSE
KEYS = TEXT | LOOKS_LIKE_SOMETHING_ELSE
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def same(left, right):
    """Equal in value and in type, all the way down: 1 and 1.0 and True differ."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-7", 5e-7),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("-2.5e-3", -0.0025),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("1_000.5", 1000.5),
        ("-.inf", -math.inf),
        ("7", 7),
        ("-12", -12),
        ("1_000", 1000),
        ("0x10", 16),
        ("0", 0),
        ("0o17", 15),
        ("010", "010"),
        ("089", "089"),
        ("-_1", "-_1"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("train[:30%]", "train[:30%]"),
        ("'5e-7'", "5e-7"),
        ("true", True),
        ("off", "off"),
        ("Yes", "Yes"),
        ("null", None),
    ],
)
def test_a_value_is_read_as_people_mean_it(tmp_path, written, value):
    read = load_yaml(write(tmp_path, f"key: {written}\n"))["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_duplicate_key_is_named_with_both_of_its_lines(tmp_path):
    path = write(tmp_path, "risk_test:\n  delta: 0.1\n  lambda: 0.1\n  delta: 0.2\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value) == f"{path}, line 4: duplicate key 'delta', first given on line 2"


def test_a_duplicate_section_is_an_error_and_a_key_of_two_sections_is_not(tmp_path):
    assert load_yaml(write(tmp_path, "a:\n  x: 1\nb:\n  x: 2\n")) == {"a": {"x": 1}, "b": {"x": 2}}
    with pytest.raises(ConfigError, match="line 3: duplicate key 'a', first given on line 1"):
        load_yaml(write(tmp_path, "a:\n  x: 1\na:\n  y: 2\n"))


def test_a_merge_key_can_be_overridden_without_being_a_duplicate(tmp_path):
    path = write(tmp_path, "base: &base\n  x: 1\n  y: 2\nnext:\n  <<: *base\n  y: 3\n")
    assert load_yaml(path)["next"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "expected keys and values such as `policy_name: …`, got a list"),
        ("just text\n", "got a str"),
        ("a: [1, 2\nb: 3\n", r"line 2: broken YAML: "),
        ("a: 1\n\tb: 2\n", r"line 2: broken YAML: found character '\\t'"),
        ("a: *nowhere\n", "line 1: broken YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "broken YAML: but found another document"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: broken YAML: could not determine a constructor"),
        ("a: 0x_\n", "broken YAML: invalid literal"),
        ("a: \x01\n", "broken YAML: special characters are not allowed"),
        ("a: 1\n2: b\n", "line 2: key 2 is not text; write it in quotes"),
        ("true: 1\n", "line 1: key True is not text; write it in quotes"),
        ("a:\n  " + "[" * 1500 + "\n", "line 2: broken YAML: values nested deeper than 100 levels"),
        (
            "%YAML 1.1\n---\na: 12:30\n",
            "line 1: the file says it is YAML 1.1, and is read as YAML 1.2; remove",
        ),
        ("%YAML 1.3\n---\na: 1\n", "line 1: the file says it is YAML 1.3"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", 'line 4: broken YAML: found duplicate merge key "<<"'),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_states_its_version_1_2_and_an_anchor_given_anew_are_read(tmp_path):
    path = write(tmp_path, "%YAML 1.2\n---\na: &x 1\nb: &x 2\nc: *x\n")
    assert load_yaml(path) == {"a": 1, "b": 2, "c": 2}


def test_a_missing_file_a_folder_and_a_binary_file_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a configuration file"):
        load_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_yaml(str(tmp_path / "binary.yaml"))


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(tmp_path / "config.yaml") == {"a": 1}


@settings(max_examples=150, deadline=None)
@given(config=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_back_in_value_and_type(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("roundtrip") / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert same(load_yaml(path), config)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from(" \xa0\n\t:#'\"-a\u2028😀"), min_size=100, max_size=300))
def test_a_long_text_is_read_back_to_the_last_blank(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("roundtrip") / "config.yaml"
    path.write_text(dump_yaml({"key": text, text: 1}), encoding="utf-8")
    assert load_yaml(path) == {"key": text, text: 1}


def test_what_is_written_means_the_same_to_readers_of_yaml_1_1():
    values = {"a": 5e-7, "b": "no", "c": "Off", "d": True, "e": None, "f": 1e22, "g": [1, "yes"], "h": "5e-7"}
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    assert same(reader.load(dump_yaml(values)), values)


def test_an_override_replaces_adds_and_parses_like_the_file():
    config = {"risk_test": {"delta": 0.1, "lambda": 0.1}, "peft": None}
    overrides = ["risk_test.delta=5e-2", "peft.r=8", "a.b.c=[1, x]", "top=", "risk_test.lambda = 1e-1 "]
    assert apply_overrides(config, overrides) == {
        "risk_test": {"delta": 0.05, "lambda": 0.1},
        "peft": {"r": 8},
        "a": {"b": {"c": [1, "x"]}},
        "top": None,
    }


def test_the_last_override_of_a_key_wins_and_only_the_first_equals_sign_separates():
    assert apply_overrides({}, ["a=1", "a=2", "b=x=y"]) == {"a": 2, "b": "x=y"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("risk_test.delta", "override 'risk_test.delta' has no '='; expected key=value"),
        ("=1", "has an empty key"),
        ("a..b=1", "has an empty key"),
        (".a=1", "has an empty key"),
        ("", "has no '='"),
        ("--risk_test.delta=1", "must be written without dashes: risk_test.delta=1"),
        ("a=[1", r"value of override 'a=\[1' \(quote it if it is text\), line 1: broken YAML"),
        ("a={x: 1, x: 2}", "duplicate key 'x'"),
        ("policy_name.x=1", "policy_name holds 'm', which has no keys below"),
        ("list.0=1", r"list holds \[1\], which has no keys below"),
    ],
)
def test_a_malformed_override_is_quoted_and_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"policy_name": "m", "list": [1]}, [override])


@settings(max_examples=150, deadline=None)
@given(path=st.lists(NAMES, min_size=1, max_size=3), value=NUMBERS | st.booleans() | st.none() | NAMES)
def test_an_override_sets_exactly_its_key_and_leaves_its_input_alone(path, value):
    config = {"Other": {"x": [1]}, path[0]: {"Kept": 1}}
    before = copy.deepcopy(config)
    written = dump_yaml({"v": value}).removeprefix("v: ").strip()
    result = apply_overrides(config, [f"{'.'.join(path)}={written}"])
    assert config == before
    found = result
    for part in path:
        found = found[part]
    assert same(found, value)
    assert result["Other"] == {"x": [1]}
    assert result["Other"]["x"] is not config["Other"]["x"]
    assert len(path) == 1 or result[path[0]]["Kept"] == 1


def loaded_modules(statement):
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_importing_the_package_loads_no_heavy_library():
    heavy = {"torch", "transformers", "pydantic", "ruamel", "datasets", "numpy"}
    assert not heavy & loaded_modules("import dynamic_dpo.config")


def test_loading_and_checking_a_file_without_training_arguments_does_not_import_torch(tmp_path):
    path = write(tmp_path, "policy_name: m\n")
    statement = f"from dynamic_dpo.config import *; get_training_config(load_yaml({str(path)!r}))"
    loaded = loaded_modules(statement)
    assert "pydantic" in loaded
    assert not {"torch", "transformers", "datasets"} & loaded


def test_the_loader_alone_does_not_import_the_schema():
    assert "pydantic" not in loaded_modules("from dynamic_dpo.config.loader import get_training_config")


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import dynamic_dpo.config

    assert set(dynamic_dpo.config.__all__) <= set(dir(dynamic_dpo.config))
    with pytest.raises(AttributeError, match="no attribute 'load_yml'"):
        dynamic_dpo.config.load_yml  # noqa: B018
