"""200 hostile names and 50 hostile configuration files: every one is refused at once, and none leaves its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bounds_of_time import NO_END
from dynamic_dpo.config import get_evaluation_config, get_training_config, load_yaml
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers.checkpoints.file_list import FILE_LIST, _digest, fault_of, write_file_list
from dynamic_dpo.utils.files import write_json
from dynamic_dpo.utils.names import name_fault, path_inside, relative_path_fault

DEVICES = [
    "CON",
    "con",
    "PRN",
    "AUX",
    "NUL",
    "nul.txt",
    "CONIN$",
    "CLOCK$",
    "Com1",
    "COM9.jsonl",
    "LPT1",
    "lpt².log",
]
TRAVERSALS = [
    "..", ".", "../x", "../../etc/passwd", "a/../../x", "./../x", "logs/../../../x", "/etc/passwd", "//x", "/",
    "a//b", "a/./b", "..\\x", "..\\..\\windows", "C:\\x", "c:x", "\\\\server\\share", "a\\..\\b", "~/x", "~root/x",
    "a/..", "../", "....//x/..", "x/~/..", "file:///etc/passwd", "a/ ../b", "a/../b ", "...", "a/.. /b", "..%2f/..",
]  # fmt: skip
CHARACTERS = [
    *(f"a{chr(code)}b" for code in range(32)),
    *(f"a{chr(code)}b" for code in (0x7F, 0x85, 0x9F, 0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F)),
    *(f"gnp.{chr(code)}exe" for code in (0x202A, 0x202B, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068)),
    *(
        f"a{chr(code)}"
        for code in (0x2028, 0x2029, 0x2060, 0xFEFF, 0xFFF9, 0xE0001, 0xE000, 0xFFFF, 0x10FFFF)
    ),
    *(f"x{chr(code)}y" for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)),
    *(f"a{mark}b" for mark in '<>:"|?*\\'),
]
LENGTHS = [
    "",
    " ",
    "  x",
    "x ",
    "x.",
    "x. ",
    "-rf",
    "--config",
    "~",
    "x" * 201,
    "x" * 5000,
    "é" * 101,
    "𐍈" * 60,
]
PLACES = ["{}/x", "logs/{}", "a/{}/b"]
HOSTILE = [*DEVICES, *TRAVERSALS, *CHARACTERS, *LENGTHS]
# The same below folders: only what is hostile as a part of a path.
BELOW = [
    place.format(name) for name in [*DEVICES, "..", ".", "a\0b", "a\u202eb", "x" * 201] for place in PLACES
]
NAMES = [
    *HOSTILE,
    *BELOW,
    *(f"{name}/../../{name}" for name in DEVICES),
    *("../" * depth + "etc/passwd" for depth in range(1, 21)),
]


def test_there_are_two_hundred_hostile_names() -> None:
    assert len(set(NAMES)) >= 200


@pytest.mark.parametrize(
    "harmless", ["margins.jsonl", "logs/margins", "моя-модель", "模型", "naïve", "a b", ".hidden"]
)
def test_a_harmless_name_passes(harmless: str, tmp_path: Path) -> None:
    assert relative_path_fault(harmless) is None
    assert path_inside(tmp_path, harmless, what="name") == tmp_path / harmless


def test_no_hostile_name_becomes_a_path(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in NAMES:
        assert name_fault(name), name
        with pytest.raises(ConfigError, match="must"):
            path_inside(inside, name, what="the name must be right:")


SETTINGS = [
    ("margin_log", "log_dir"),
    ("margin_log", "dpo_log_dir"),
    ("dpo_training", "hub_model_id"),
    ("sft_training", "hub_model_id"),
]


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_a_training_file_with_a_hostile_name_is_refused(section: str, key: str) -> None:
    # A margin log given in full, or in the home folder, is the user's own choice.
    own = {name for name in NAMES if key.endswith("log_dir") and name.startswith(("/", "~"))}
    if key == "hub_model_id":  # The hub is no Windows disk.
        own = {name for name in NAMES if name == "x." or set(name.split("/")) & {*DEVICES}} - {*TRAVERSALS}
        own -= {name for name in own if ".." in name or name.count("/") > 1 or "$" in name}
    for name in set(NAMES) - own:
        with pytest.raises(ConfigError, match=rf"^{section}\.{key} ") as caught:
            get_training_config({"policy_name": "m", section: {key: name}})
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["generations", "judgements", "summary"])
def test_an_evaluation_file_with_a_hostile_output_is_refused(key: str) -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match=f"^output.{key} "):
            get_evaluation_config({"output": {key: name}})


@pytest.mark.parametrize("key", ["run_name", "save_dir"])
def test_what_cannot_be_seen_is_in_no_run_name_and_no_folder(key: str) -> None:
    for name in [*CHARACTERS[:-8], "a\0", "\u202eexe.fdp"]:
        with pytest.raises(ConfigError, match=f"^dpo_training.{key} must (hold no control|be text)"):
            get_training_config({"policy_name": "m", "dpo_training": {key: name}})
    assert get_training_config({"policy_name": "m", "dpo_training": {key: "/data/../r 1"}})


def test_a_margin_log_writes_only_inside_its_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in NAMES:
        with pytest.raises(ConfigError, match="jsonl_name"):
            MarginLogConfig(jsonl_name=name).open(run, rank=0, num_ranks=1)
    for name in [name for name in TRAVERSALS if not name.startswith(("/", "~"))]:
        with pytest.raises(ConfigError, match="log_dir"):
            MarginLogConfig(log_dir=name).open(run, rank=0, num_ranks=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run"]


def test_a_symbolic_link_does_not_lead_out_of_the_run(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (run / "logs").symlink_to(outside)
    (outside / "margins").mkdir()
    (outside / "margins" / "margins.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(ConfigError, match=r"log_dir 'logs/margins' leads out of .* through a symbolic link"):
        MarginLogConfig().open(run, rank=0, num_ranks=1)
    with pytest.raises(ConfigError, match=r"jsonl_name 'margins.jsonl' leads out of"):
        MarginLogConfig(log_dir=str(outside / "margins")).open(run, rank=0, num_ranks=1)


@pytest.mark.parametrize(
    "name", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "link.bin", "a\0b", ""]
)
def test_a_file_list_that_points_out_of_its_checkpoint_is_refused_unread(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"1")
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    files = {name: {"size": 1, "sha256": "0"}}
    write_json(folder / FILE_LIST, {"version": 1, "files": files, "sha256": _digest(files)})
    assert "is not to be trusted" in str(fault_of(folder))


@pytest.mark.parametrize(
    "files",
    [
        [],
        "text",
        5,
        None,
        {"a": 1},
        {"a": {}},
        {"a": {"size": "x", "sha256": 1}},
        {"a": {"size": None, "sha256": ""}},
    ],
)
def test_a_file_list_of_another_shape_is_damaged(files: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    write_file_list(tmp_path)
    assert fault_of(tmp_path) is None
    write_json(tmp_path / FILE_LIST, {"version": 1, "files": files, "sha256": _digest(files)})
    assert "damaged" in str(fault_of(tmp_path)) or fault_of(tmp_path) is None is files


def laughs(levels: int, width: int) -> str:
    lines = ["l0: &l0 [lol]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * width)}]")
    return "\n".join(lines)


EXECUTED = "executed"
PYTHON_TAGS = [
    f"!!python/object/apply:os.system ['touch {EXECUTED}']",
    f"!!python/object/new:os.system ['touch {EXECUTED}']",
    f"!!python/object/apply:subprocess.check_output [[touch, {EXECUTED}]]",
    f'!!python/object/apply:builtins.exec [\'open("{EXECUTED}", "w")\']',
    f'!!python/object/apply:builtins.eval [\'open("{EXECUTED}", "w")\']',
    "!!python/object:threading.Thread {}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!python/bytes aGk=",
    "!!python/complex 1+2j",
    "!!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , ['1']]]",
    "!!python/object/apply:pathlib.Path [/etc/passwd]",
    "!custom {a: 1}",
    "!<tag:example.org,2000:x> 1",
    "!!js/function 'function(){}'",
    "!!java.net.URL ['http://localhost']",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
]
DOCUMENTS: list[str | bytes] = [
    *(f"policy_name: m\nrun: {tag}\n" for tag in PYTHON_TAGS),
    f"{PYTHON_TAGS[0]}: key\n",
    laughs(12, 10) + "\npolicy_name: *l11\n",
    laughs(40, 2),
    "a: &a {b: 1}\n" + "\n".join(f"k{n}: &k{n} {{<<: [*a, *a], x: {n}}}" for n in range(50)),
    "a: &a [*a]\n",
    "a: &a {b: *a}\n",
    "policy_name: *missing\n",
    "<<: [1, 2]\npolicy_name: m\n",
    "<<: text\n",
    "a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n",
    "policy_name: a\npolicy_name: b\n",
    "risk_test: {delta: 0.1, delta: 0.2}\n",
    "policy_name: " + "9" * 100_000 + "\n",
    "risk_test:\n  delta: 0x" + "f" * 100_000 + "\n",
    "policy_name: m\ndataset: {seed: " + "7" * 4000 + "}\n",
    "a: " + "[" * 20_000 + "\n",
    "a: " + "{b: " * 5000 + "1" + "}" * 5000 + "\n",
    "\n".join(" " * n + f"k{n}:" for n in range(3000)),
    "- " * 3000 + "a\n",
    b"policy_name: \xff\xfe\x00\n",
    b"\xff\xfep\x00o\x00l\x00",
    b"policy_name: \x80abc\n",
    b"policy_name: a\x00b\n",
    b"\x00" * 4096,
    "policy_name: a\x07b\n",
    "? [a, b]\n: 1\n",
    "1: 2\n",
    "policy_name: m\n---\npolicy_name: n\n",
    "- policy_name\n",
    "just text\n",
    "policy_name: [unclosed\n",
    "\tpolicy_name: m\n",
    "%YAML 9.9\n---\npolicy_name: m\n",
    "policy_name: 'm\n",
    "policy_name: m\nrisk_test: {delta: .nan}\n",
    "policy_name: m\nrisk_test: {delta: 1e999}\n",
    "",
    "policy_name: m\n" + "".join(f"unknown_{n}: 1\n" for n in range(500)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_a_hostile_configuration_is_one_clear_error_quickly(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = DOCUMENTS[number]
    path = tmp_path / "config.yaml"
    path.write_bytes(document if isinstance(document, bytes) else document.encode())
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        get_training_config(load_yaml(path))
    assert time.process_time() - start < NO_END
    assert len(str(caught.value)) < 100_000
    assert not Path(EXECUTED).exists()
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_there_are_fifty_hostile_configurations() -> None:
    assert len(set(DOCUMENTS)) >= 50
