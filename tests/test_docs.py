"""The pages tell the truth: links lead somewhere, commands and settings exist, examples run, figures are measured."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
from ruamel.yaml import YAML

from dynamic_dpo.config import (
    apply_overrides,
    get_evaluation_config,
    get_loop_config,
    get_training_config,
    load_yaml,
)
from dynamic_dpo.sweeps.grid import split_axes
from places import ROOT

PAGES = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
# Pages that the site makes by itself (tests/test_docs_site.py).
GENERATED = {"reference/commands.md", "reference/python.md", "changes.md", "contributing.md", "reporting.md"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)


class Block(NamedTuple):
    page: Path
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}-{self.number}"


def blocks_of(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        Block(page, number, match["language"], re.sub(f"^{match['indent']}", "", match["body"], flags=re.M))
        for number, match in enumerate(found, start=1)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def prose_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.name


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_lines() -> list[list[str]]:
    """Every line of a shell block that begins with one of our commands, or launches one, split into words."""
    lines = []
    for block in BLOCKS:
        if block.language not in ("bash", "sh", ""):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if words := shlex.split(part, comments=True):
                    lines.append(words)
    return lines


def overrides_of(words: list[str]) -> list[str]:
    return [word for word in words[1:] if re.match(r"[a-z_][\w.]*=", word)]


def inline_overrides() -> list[str]:
    """Settings in running text: ``section.key=value``, and keys of the top level."""
    code = [match for page in PAGES for match in re.findall(r"`([^`\n]+)`", prose_of(page))]
    setting = re.compile(r"(?:[a-z_]\w*(?:\.\w+)+|precision|policy_name|ref_name)=[^\s…]+")
    return [text for text in code if setting.fullmatch(text)]


# ---- links ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if file in {(ROOT / "docs" / name).resolve() for name in GENERATED}:
            continue
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", prose_of(page))
        waiting += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert [page.name for page in PAGES if page not in reached and page.name != "CHANGELOG.md"] == []


# ---- commands and settings ----


def test_commands_on_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    from dynamic_dpo.cli.main import COMMANDS

    checked = set()
    for words in command_lines():
        program, *rest = words
        checked.add(program)
        if program == "make":
            assert re.search(rf"^{re.escape(rest[0])}:", makefile, flags=re.M), words
        elif program == "dynamic-dpo":
            assert rest[0] in COMMANDS or rest == ["--version"], words
        elif program in ("accelerate", "python"):
            if "-m" in words:
                assert importlib.util.find_spec(words[words.index("-m") + 1]), words
            else:
                assert (ROOT / rest[0]).is_file(), words
        elif program not in ("source", "pip"):
            assert program in SCRIPTS, words
    assert {"make", "train-dpo", "train-sft", "dynamic-dpo", "accelerate"} <= checked


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a file of the project, or of a block of a page that begins with its name."""
    if (ROOT / name).is_file():
        return load_yaml(ROOT / name)
    (text,) = (block.text for block in BLOCKS if block.text.startswith(f"# {name}\n"))
    found: dict[str, Any] = YAML(typ="safe").load(text)
    return found


def test_settings_on_command_lines_parse_with_the_file_they_follow() -> None:
    checked = 0
    for words in command_lines():
        if "--config" not in words:
            continue
        axes, overrides = (
            split_axes(overrides_of(words)) if "sweep" in words[:2] else ((), overrides_of(words))
        )
        settings = apply_overrides(settings_of(words[words.index("--config") + 1]), overrides)
        for axis in axes:
            for value in axis.values:
                get_training_config(apply_overrides(settings, [f"{axis.key}={value}"]))
        check = get_training_config
        if {"evaluate", "judge", "export"} & set(words[:2]):
            check = get_evaluation_config
        elif "iterate" in words[:2]:
            check = get_loop_config
        check(settings)
        checked += 1
    assert checked >= 10


def test_settings_in_running_text_parse() -> None:
    settings = inline_overrides()
    for setting in settings:
        get_training_config(apply_overrides({"policy_name": "some/model"}, [setting]))
    assert len(settings) >= 10


def test_a_misspelt_setting_would_be_found() -> None:
    with pytest.raises(ValueError, match=r"unknown key risk_test\.dleta"):
        get_training_config(apply_overrides({"policy_name": "some/model"}, ["risk_test.dleta=0.05"]))


def test_keys_named_in_running_text_exist() -> None:
    from dynamic_dpo.config.problems import known_paths
    from dynamic_dpo.config.schema import EvaluationConfig, TrainingConfig

    known = {*known_paths(TrainingConfig), *known_paths(EvaluationConfig)}
    sections = {path.partition(".")[0] for path in known if "." in path}
    named = {
        text
        for page in PAGES
        if page.name not in ("configuration.md", "data.md")
        for text in re.findall(r"`([a-z_]+\.[a-z_0-9]+)`", prose_of(page))
        if text.partition(".")[0] in sections
    }
    assert len(named) >= 20
    assert named <= known


# ---- examples ----


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_on_the_pages_compiles(block: Block) -> None:
    text = block.text
    if text.startswith(">>> "):
        text = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    compile(text, str(block), "exec")


# The sessions of architecture.md show what its recipes have changed: test_recipes.py runs them on a copy.
SESSIONS = [p for p in PAGES if ">>> " in p.read_text(encoding="utf-8") and p.name != "architecture.md"]


@pytest.mark.parametrize("page", SESSIONS, ids=name_of)
def test_sessions_on_the_pages_print_what_they_show(page: Path) -> None:
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert results.failed == 0


def test_every_example_row_of_the_first_pages_is_one_usable_pair() -> None:
    from dynamic_dpo.data.preference import to_preference_pairs

    (block,) = [b for b in BLOCKS if b.page.name == "own-data.md" and b.language == "json"]
    rows = [json.loads(line) for line in block.text.splitlines()]
    assert len(rows) == 4
    for row in rows:
        pairs = to_preference_pairs([row], kind="rollouts" if "prompt_messages" in row else "auto")
        assert (len(pairs.dataset), len(pairs.quarantine)) == (1, 0), row


def test_the_python_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets import Dataset

    from tiny import tiny_llama, word_tokenizer

    tiny_llama().save_pretrained(tmp_path / "tiny")
    word_tokenizer().save_pretrained(tmp_path / "tiny")
    words = [f"w{i} w{i + 1} w{i + 2}" for i in range(8)]
    rows = {"prompt": words, "chosen": [" w40 w41"] * 8, "rejected": [" w50"] * 8}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: Dataset.from_dict(rows))
    monkeypatch.chdir(tmp_path)

    (block,) = [b for b in PYTHON if b.page.name == "python.md"]
    here = {
        "HuggingFaceTB/SmolLM2-135M-Instruct": "./tiny",
        'report_to="none"': 'report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, num_train_epochs=2',
    }
    text = block.text
    for shown, ours in here.items():
        assert shown in text
        text = text.replace(shown, ours)
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {}
    exec(compile(text, str(block), "exec"), names)

    assert names["trainer"].state.global_step == 2
    assert (tmp_path / "runs/api/model/model.safetensors").is_file()
    assert (tmp_path / "runs/api/run_summary.json").is_file()


def test_the_method_of_the_guide_trains_for_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynamic_dpo import methods
    from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

    # The guide registers into the table; the tests that run over the table must not meet its entries.
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    names: dict[str, Any] = {
        "model": tiny_llama(),
        "tokenizer": word_tokenizer(),
        "pairs": random_pairs(4),
        "args": training_arguments(tmp_path, max_steps=1),
    }
    for block in PYTHON:
        if block.page.name == "adding-a-method.md":
            exec(compile(block.text, str(block), "exec"), names)

    assert {"square", "budgeted_square"} <= set(methods.METHODS)
    trainer = names["trainer"]
    assert trainer.state.global_step == 1
    # All margins are 0 before the first step: below the budget of 5 nats, so beta goes down by 1 %.
    assert trainer.method.beta == pytest.approx(0.2 / 1.01, rel=1e-12)
    # (1 - 0.2 · 0)² = 1
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.0, abs=1e-6)
    fresh = names["BudgetedSquare"]()
    fresh.load_state_dict(json.loads(json.dumps(trainer.method.state_dict())))
    assert fresh.beta == trainer.method.beta


# ---- figures ----


def drift_table() -> dict[int, tuple[float, float, float, float]]:
    """Batch size to (paper, its standard error, exact, its standard error), as docs/method.md prints them."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").replace("−", "-")
    rows = re.findall(r"^\| (\d+) \| (\S+) ± (\S+) \| (\S+) ± (\S+) \|$", text, flags=re.M)
    return {int(n): tuple(map(float, figures)) for n, *figures in rows}  # type: ignore[misc]


@pytest.mark.parametrize("n", [4, 16])
def test_the_drift_table_is_measured(n: int) -> None:
    from dynamic_dpo.methods import RiskConfig
    from dynamic_dpo.methods.risk.drift import null_drift

    paper, paper_error, exact, exact_error = drift_table()[n]
    # Another seed: the figure must be right, not only repeated. Two independent estimates, 4 standard errors.
    for mode, shown, error in (("paper", paper, paper_error), ("exact", exact, exact_error)):
        measured = null_drift(RiskConfig(mode=mode, momentum=0.1), n, chains=128, seed=1)
        assert abs(measured.per_1000 - shown) < 4 * 2**0.5 * max(error, measured.standard_error), mode


def test_the_drift_table_has_the_sizes_of_its_command() -> None:
    assert list(drift_table()) == [4, 16, 64, 512]


def test_the_score_table_follows_from_the_equations() -> None:
    from dynamic_dpo.loss.risk import risk_statistic

    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").replace("−", "-")
    shown = [float(x) for x in re.search(r"^\| s \| (.+) \|$", text, flags=re.M)[1].split(" | ")]  # type: ignore[index]
    expected = [risk_statistic(k / 16, 0.1, 16, 2.0).s_k for k in range(5)]
    assert shown == pytest.approx(expected, abs=5e-4)


def test_the_picture_of_a_shared_row_is_the_mask() -> None:
    from dynamic_dpo.engine.rows import PairBatch, shared_rows

    rows = shared_rows(PairBatch([[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]], [0]))
    (picture,) = [b.text for b in BLOCKS if b.page.name == "engine.md" and "P1" in b.text]
    _, positions, *lines = [line.replace("|", " ").split() for line in picture.splitlines()]
    assert [int(p) for p in positions[1:]] == rows.position_ids[0].tolist()
    seen = [[mark == "x" for mark in line[1:]] for line in lines]
    assert seen == rows.allowed_attention()[0, 0].tolist()


def test_the_version_is_the_same_wherever_it_stands() -> None:
    import dynamic_dpo

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dynamic_dpo.__version__"}
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == dynamic_dpo.__version__
