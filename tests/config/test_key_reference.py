"""The shipped files, `--help` and the documentation say what the schema says."""

import re
import subprocess
import sys
from inspect import signature

import pytest

from dynamic_dpo.config import get_evaluation_config, get_loop_config, get_training_config, load_yaml
from dynamic_dpo.config.base import walk
from dynamic_dpo.config.key_reference import describe_keys, render_help, render_markdown
from dynamic_dpo.config.schema import EvaluationConfig, LoopConfig, TrainingConfig
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.verdict import Verdict, parse_verdict
from dynamic_dpo.methods import METHODS
from places import ROOT

# What a shipped file must choose although the schema cannot: marked "(example)" in the file.
EXAMPLES = {
    "dpo": {"policy_name", "dataset.dataset_name", "dataset.chat_template"},
    "sft": {"policy_name", "dataset.dataset_name", "dataset.chat_template"},
    "evaluation": {"dataset.name", "models"},
    "rollout": {"policy_name", "dataset.dataset_name", "rollout.reward_model"},
    "iterate": {
        "policy_name",
        "dataset.dataset_name",
        "dataset.chat_template",
        "rollout.limit",
        "rollout.reward_model",
        "dpo_training.warmup_steps",
        "evaluation.dataset.name",
        "evaluation.generation.temperature",
        "evaluation.generation.top_p",
        "evaluation.judge.kind",
        "evaluation.judge.reward_model",
    },
}

# Settings of the first four stand in the general file.
METHOD_FILES = tuple(name for name in METHODS if name not in ("dpo", "risk", "schedule", "sft"))


def flat(config, prefix=""):
    paths = {}
    for key, value in config.items():
        path = prefix + key
        if isinstance(value, dict) and value and path != "models":
            paths |= flat(value, f"{path}.")
        else:
            paths[path] = value
    return paths


def shipped(name):
    return load_yaml(ROOT / "configs" / f"{name}.yaml")


def checked(name, config):
    checks = {"evaluation": get_evaluation_config, "iterate": get_loop_config}
    return checks.get(name, get_training_config)(config)


@pytest.mark.parametrize("name", ["dpo", "sft", "evaluation", "rollout", "iterate"])
def test_a_shipped_file_loads_and_equals_the_defaults_but_for_its_marked_examples(name):
    default = checked(name, {} if name == "evaluation" else {"policy_name": "m"})
    chosen, defaults = flat(checked(name, shipped(name)).to_dict()), flat(default.to_dict())
    differing = {path for path in chosen | defaults if chosen.get(path) != defaults.get(path)}
    assert differing == EXAMPLES[name]
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.count("(example") == len(EXAMPLES[name])


def test_the_shipped_files_show_every_key_of_their_commands():
    every = {path for path, _, section in walk(TrainingConfig) if section is None}
    # Losses that may be added stand in a comment: one key for each of them.
    elsewhere = {
        path
        for path in every
        if path.startswith(
            (
                "sft_training.",
                "rollout.",
                "peft.",
                "objective.add.",
                "dpo_training.keep_best.",
                "sampling.",
            )
        )
    }
    # The second name of max_len: a file gives one of the two.
    in_method_files = {
        path for name in METHOD_FILES for path in flat(shipped(name)) if path.startswith(f"{name}.")
    }
    shown = set(flat(shipped("dpo"))) | in_method_files
    # Their names are the user's; the file shows one in a comment.
    nameable = {path for path in every if path.startswith("dataset.mixture.")}
    assert every - elsewhere - nameable - {"dataset.max_length"} == shown - {
        "peft",
        "dataset.mixture",
        "dpo_training.keep_best",
        "sampling",
    }
    assert {path for path in every if path.startswith("sft_training.")} <= set(flat(shipped("sft")))
    nameable = {"rollout.scorers", "rollout.gpt4_oracle.prices"}
    rollout = {path for path in every if path.startswith("rollout.") and "<" not in path}
    assert rollout == {path for path in flat(shipped("rollout")) if path.startswith("rollout.")} - nameable
    loop = {path for path, _, section in walk(LoopConfig) if section is None and path.startswith("iterate.")}
    assert loop == {path for path in flat(shipped("iterate")) if path.startswith("iterate.")}
    evaluation = {path for path, _, section in walk(EvaluationConfig) if section is None and "<" not in path}
    assert evaluation == set(flat(shipped("evaluation"))) - {"models", "judge.prices", "judges"}


@pytest.mark.parametrize("name", METHOD_FILES)
def test_a_methods_file_chooses_it_and_shows_its_defaults(name):
    given = shipped(name)
    assert given["method"]["name"] == name
    config = checked(name, given)
    default = TrainingConfig(policy_name="m")
    assert given[name] == config.settings_of(name) == default.settings_of(name)
    chosen, defaults = flat(config.to_dict()), flat(default.to_dict())
    differing = {path for path in chosen if chosen[path] != defaults.get(path)}
    assert differing == EXAMPLES["dpo"] | {"method.name", "dpo_training.save_dir"}


@pytest.mark.parametrize("name", ["dpo", "sft", "evaluation", "rollout", "iterate", *METHOD_FILES])
def test_every_key_of_a_shipped_file_is_explained_in_place(name):
    lines = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"(  )?\w+: ", line)]
    assert len(keys) > (8 if name in METHOD_FILES else 20)
    assert [lines[number] for number in keys if not has_words_above(lines, number)] == []


def has_words_above(lines, number):
    """Whether a comment stands above a key or above the run of lines it belongs to."""
    for line in reversed(lines[:number]):
        if line.lstrip().startswith("#"):
            return True
        if not line:
            return False
    return False


@pytest.mark.parametrize("section", ["peft", "sampling"])
def test_a_commented_section_of_the_shipped_file_is_its_default(section, tmp_path):
    text = (ROOT / "configs" / "dpo.yaml").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"^#   {section}:\n((?:#     .*\n)+)", text, re.MULTILINE)
    default = get_training_config({"policy_name": "m", section: {}}).to_dict()[section]
    (tmp_path / "section.yaml").write_text(lines.replace("#     ", ""), encoding="utf-8")
    assert load_yaml(tmp_path / "section.yaml") == default


def test_the_judge_takes_the_section_as_it_is_and_reads_the_verdicts_its_prompt_asks_for():
    section = get_evaluation_config(shipped("evaluation")).gpt4_oracle
    question = GPT4Oracle(**section.model_dump()).question("the request", "one answer", "another answer")
    assert question.index("the request") < question.index("one answer") < question.index("another answer")
    assert question.index("First compare the replies") < question.index("Verdict:")
    last_lines = question.rstrip().splitlines()[-3:]
    assert [parse_verdict(f"Reasons.\n{line}") for line in last_lines] == [Verdict.A, Verdict.B, Verdict.TIE]


def test_the_judge_and_its_section_have_the_same_defaults():
    section = get_evaluation_config({}).gpt4_oracle.model_dump()
    own = {name: parameter.default for name, parameter in signature(GPT4Oracle).parameters.items()}
    assert section.keys() == own.keys() - {"base_url", "client"}
    assert {key for key in section if section[key] != own[key]} == set()


def test_every_key_has_a_type_a_default_and_a_meaning():
    for model in (TrainingConfig, EvaluationConfig):
        for key in describe_keys(model):
            assert key.type, key
            assert key.default, key
            assert key.meaning.endswith((".", ")")), key


def test_the_help_lists_every_key_with_type_default_and_meaning():
    text = render_help(width=90)
    paths = [path for path, _, section in walk(TrainingConfig) if section is None]
    assert [path for path in paths if f"  {path} = " not in text] == []
    assert "  risk_test.lambda = 0.1  (number in [0, 1])\n      Rate at which tau follows" in text
    assert "  policy_name = (required)  (text)\n" in text
    assert "  dpo_training.learning_rate = 5e-7  (number > 0)\n" in text
    assert "  engine.num_proc = null  (whole number ≥ 1 or null)\n" in text
    headers = [line for line in text.splitlines() if " = " not in line]
    assert max(map(len, headers)) <= 90


def test_a_key_is_listed_under_its_own_section_even_if_another_section_begins_alike():
    lines = render_help().splitlines()
    section_of = {}
    current = ""
    for line in lines:
        if line and not line.startswith(" ") and ":" in line:
            current = line.split(":")[0]
        elif " = " in line:
            section_of[line.split(" = ")[0].strip()] = current
    assert section_of["dpo.label_smoothing"] == "dpo"
    assert section_of["dpo_training.epochs"] == "dpo_training"
    assert section_of["precision"] == "top level"


def test_the_documentation_is_what_the_schema_says():
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == render_markdown(), (
        "run: python -m dynamic_dpo.config.key_reference > docs/configuration.md"
    )


def test_the_documentation_is_written_by_the_command_it_names():
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-W", "error", "-m", "dynamic_dpo.config.key_reference"],
        capture_output=True,
        check=True,
    )
    assert run.stdout.decode() == render_markdown()


def test_tables_of_the_documentation_have_four_columns_in_every_row():
    rows = [line for line in render_markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
