"""The checked configuration: defaults, keys, ranges, contradictions, and how mistakes are worded."""

import math
import re
import string
from difflib import SequenceMatcher
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.config import get_evaluation_config, get_training_config, load_yaml
from dynamic_dpo.config.base import walk
from dynamic_dpo.config.phrases import bounds_of
from dynamic_dpo.config.problems import nearest
from dynamic_dpo.config.schema import EvaluationConfig, TrainingConfig
from dynamic_dpo.config.sections.methods import MethodName
from dynamic_dpo.config.trackers import known_trackers
from dynamic_dpo.errors import ConfigError


def config_with(**sections):
    return get_training_config({"policy_name": "m", **sections})


def problems_of(**sections):
    with pytest.raises(ConfigError) as caught:
        config_with(**sections)
    return str(caught.value).splitlines()


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def evaluation_problems_of(**sections):
    with pytest.raises(ConfigError) as caught:
        get_evaluation_config(sections)
    return str(caught.value).splitlines()


PROMISED = {
    "": "policy_name ref_name precision",
    "dataset": "dataset_name generated_data chat_template subset val_ratio seed max_len max_length "
    "max_prompt_length max_completion_length truncation_mode",
    "dpo_training": "epochs batch_size eval_batch_size learning_rate log_steps eval_steps save_steps "
    "gradient_accumulation max_grad_norm warmup_steps report run_name save_dir save_dpo_dir wandb_project "
    "hub_model_id push_to_hub",
    "sft_training": "learning_rate batch_size eval_batch_size epochs log_steps wandb_project save_steps "
    "warmup_steps max_length save_dir save_only_model push_to_hub hub_model_id run_name",
    "risk_test": "delta lambda beta_warmup",
    "beta_update": "beta_0 gamma alpha beta_max beta_min",
    "margin_log": "jsonl_sample_size save_per_rank log_dir dpo_log_dir",
    "rollout": "engine model_name output_dir batch_size responses_per_prompt temperature top_p "
    "max_new_tokens min_new_tokens limit judge reward_model reward_batch_size",
}
PROMISED_EVALUATION = {
    "dataset": "name split max_samples seed post_field summary_field id_field meta_fields",
    "generation": "max_new_tokens temperature top_p batch_size device prompt_template do_sample",
    "gpt4_oracle": "model temperature max_tokens randomize_order seed max_retries initial_backoff "
    "max_backoff system_prompt prompt_template",
}


@pytest.mark.parametrize(
    ("model", "promised"), [(TrainingConfig, PROMISED), (EvaluationConfig, PROMISED_EVALUATION)]
)
def test_every_promised_key_is_known(model, promised):
    known = {path for path, _, _ in walk(model)}
    wanted = {f"{section}.{key}".lstrip(".") for section, keys in promised.items() for key in keys.split()}
    assert wanted - known == set()


def test_the_defaults_are_those_of_the_shipped_file():
    cfg = config_with()
    assert (cfg.precision, cfg.ref_name, cfg.reference_name) == ("bf16", None, "m")
    assert (cfg.dataset.subset, cfg.dataset.val_ratio, cfg.dataset.seed) == ("train[:30%]", 0.1, 42)
    assert cfg.dataset.max_len == 512
    training = cfg.dpo_training
    assert (training.epochs, training.batch_size, training.gradient_accumulation) == (1.0, 16, 4)
    assert (training.learning_rate, training.max_grad_norm, training.warmup_steps) == (5e-7, 10.0, 120)
    assert (cfg.risk_test.delta, cfg.risk_test.momentum, cfg.risk_test.beta_warmup) == (0.1, 0.1, 120)
    update = cfg.beta_update
    assert (update.beta_0, update.gamma, update.alpha) == (0.1, 2.0, 0.005)
    assert (update.beta_max, update.beta_min) == (2.0, 0.0)


def test_a_file_of_version_one_loads_unchanged(tmp_path):
    path = tmp_path / "dpo.yaml"
    path.write_text(
        """
policy_name: meta-llama/Llama-3.2-1B-Instruct
ref_name: meta-llama/Llama-3.2-1B-Instruct
precision: bf16
dataset: {dataset_name: Anthropic/hh-rlhf, generated_data: false, subset: "train[:30%]", val_ratio: 0.1,
          seed: 42, max_len: 512, chat_template: true}
dpo_training: {epochs: 1, batch_size: 16, learning_rate: 5e-7, log_steps: 10, gradient_accumulation: 4,
               max_grad_norm: 10, warmup_steps: 120, report: wandb, lr_scheduler_type: cosine}
risk_test: {delta: 0.1, lambda: 0.1, beta_warmup: 120}
beta_update: {beta_0: 0.1, gamma: 2, alpha: 0.005, beta_max: 2, beta_min: 0}
margin_log:
""",
        encoding="utf-8",
    )
    cfg = get_training_config(load_yaml(path))
    assert cfg.dpo_training.learning_rate == 5e-7
    assert cfg.dpo_training.extra == {"lr_scheduler_type": "cosine"}
    assert type(cfg.beta_update.gamma) is float
    assert cfg.margin_log.log_dir == "logs/margins"


def test_the_yaml_key_lambda_is_the_attribute_momentum():
    cfg = config_with(risk_test={"lambda": 0.25})
    assert cfg.risk_test.momentum == 0.25
    assert cfg.to_dict()["risk_test"]["lambda"] == 0.25
    assert problems_of(risk_test={"momentum": 0.25}) == [
        "unknown key risk_test.momentum; did you mean risk_test.lambda?"
    ]


def test_a_null_section_has_its_defaults_and_null_peft_is_full_fine_tuning():
    cfg = config_with(dataset=None, dpo_training=None, risk_test=None, peft=None)
    assert cfg == config_with()
    assert cfg.peft is None
    with_adapters = config_with(peft={})
    assert with_adapters.peft is not None
    assert (with_adapters.peft.r, with_adapters.peft.target_modules) == (16, "all-linear")


def test_the_reference_is_the_policy_unless_named():
    assert config_with(ref_name="other").reference_name == "other"


@pytest.mark.parametrize(
    "given_as", [{"max_len": 300}, {"max_length": 300}, {"max_len": 300, "max_length": 300}]
)
def test_both_names_of_the_length_limit_hold_the_limit_in_force(given_as):
    cfg = config_with(dataset=given_as)
    assert (cfg.dataset.max_len, cfg.dataset.max_length) == (300, 300)
    assert cfg.hash() == config_with(dataset={"max_len": 300}).hash()


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("risk_test.delta", 1.2, "must lie in (0, 1), got 1.2"),
        ("risk_test.delta", 0, "must lie in (0, 1), got 0"),
        ("risk_test.lambda", math.nan, "must be a finite number, got nan"),
        ("risk_test.lambda", math.inf, "must be a finite number, got inf"),
        ("dpo_training.epochs", "three", "must be a number, got 'three' (str)"),
        ("dpo_training.epochs", True, "must be a number, got true (bool)"),
        ("dpo_training.batch_size", True, "must be a whole number, got true (bool)"),
        ("dpo_training.batch_size", 16.0, "must be a whole number, got 16.0"),
        ("dpo_training.batch_size", None, "must be a whole number, got null"),
        (
            "dpo_training.learning_rate",
            "5e-7",
            "must be a number, got '5e-7' (str); write 5e-7, without quotes",
        ),
        (
            "dpo_training.report",
            ["wandb", "mail"],
            f"must be null, none, all or trackers of transformers: {', '.join(known_trackers())}, "
            "got ['wandb', 'mail'] (list)",
        ),
        ("dpo_training.resume", 1, "must be true or false or text, got 1"),
        ("dpo_training.save_dir", "", "must not be empty"),
        ("dpo_training", [1], "must be a section of keys and values, got [1] (list)"),
        ("peft", 8, "must be a section of keys and values, got 8"),
        ("precision", "bf-16", "must be one of bf16, fp16, fp32, got 'bf-16' (str)"),
        ("schedule.drift_per_1000", "fit", "must be a number or match, got 'fit' (str)"),
        ("schedule.drift_per_1000", math.nan, "must be a finite number, got nan"),
        ("engine.num_proc", 0, "must be at least 1, got 0"),
        ("engine.num_proc", "two", "must be a whole number or null, got 'two' (str)"),
        ("method.window_multiple", 1, "must be at least 2, got 1"),
        ("dpo.label_smoothing", 0.5, "must lie in [0, 0.5), got 0.5"),
        ("dataset.val_ratio", 1, "must lie in [0, 1), got 1"),
        (
            "dpo_training.batch_size",
            "010",
            "must be a whole number, got '010' (str); write 10, without quotes",
        ),
        ("dpo_training.batch_size", "1e999", "must be a whole number, got '1e999' (str)"),
        ("dataset.chat_template", "yes", "must be true or false, got 'yes' (str); write true"),
        ("margin_log.save_per_rank", "Off", "must be true or false, got 'Off' (str); write false"),
        (
            "dpo_training.resume",
            "no",
            "must be true or false or a checkpoint's folder; write false, got 'no' (str)",
        ),
        ("dataset.max_length", -5, "must be at least 2, got -5"),
        ("beta_update.beta_0", 0, "must be greater than 0, got 0"),
    ],
)
def test_a_wrong_value_is_worded_with_its_path_what_was_expected_and_what_was_given(path, value, problem):
    assert problems_of(**nested(path, value)) == [f"{path} {problem}"]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"dataset": {"max_len": 512, "max_length": 256}},
            "dataset.max_len must equal dataset.max_length (256), which is the same limit; give only one, "
            "got 512",
        ),
        (
            {"dataset": {"max_length": 128, "max_prompt_length": 128}},
            "dataset.max_prompt_length must be less than dataset.max_len (128), got 128",
        ),
        (
            {"beta_update": {"beta_0": 5}},
            "beta_update.beta_max must be at least beta_update.beta_0 (5), got 2.0 (the default)",
        ),
        (
            {"beta_update": {"beta_min": 0.2}},
            "beta_update.beta_min must be at most beta_update.beta_0 (0.1), got 0.2",
        ),
        (
            {"rollout": {"max_new_tokens": 4, "min_new_tokens": 8}},
            "rollout.max_new_tokens must be at least rollout.min_new_tokens (8), got 4",
        ),
        (
            {"rollout": {"server": {"initial_backoff": 90}}},
            "rollout.server.max_backoff must be at least rollout.server.initial_backoff (90), "
            "got 60.0 (the default)",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_both_named(sections, problem):
    assert problems_of(**sections) == [problem]


def test_a_long_value_is_shortened_to_keep_one_line_a_problem():
    (line,) = problems_of(dpo_training={"epochs": "x\n" * 500})
    assert len(line) < 150
    assert line.endswith(" … (str)")


def test_a_missing_policy_says_what_can_be_given():
    with pytest.raises(ConfigError, match=r"policy_name is required: Model to train: hub name, folder"):
        get_training_config({})


@pytest.mark.parametrize("config", [None, [], "text"])
def test_a_configuration_that_is_no_mapping_is_refused(config):
    with pytest.raises(ConfigError, match="the configuration must be a mapping of keys and values"):
        get_training_config(config)


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("dpo_training.learnin_rate", "did you mean dpo_training.learning_rate?"),
        ("dpo_training.delta", "did you mean risk_test.delta?"),
        ("dpo_training.lr_schedular_type", "did you mean dpo_training.lr_scheduler_type?"),
        ("engine.weight_decay", "did you mean dpo_training.weight_decay or sft_training.weight_decay?"),
        ("learning_rate", "did you mean dpo_training.learning_rate or sft_training.learning_rate?"),
        ("Risk-Test", "did you mean risk_test?"),
        ("xyzzy", "docs/configuration.md lists all keys"),
        ("dataset.xyzzy", "docs/configuration.md lists all keys"),
    ],
)
def test_an_unknown_key_is_led_to_the_nearest_known_one_wherever_it_stands(path, suggestion):
    assert problems_of(**nested(path, 1)) == [f"unknown key {path}; {suggestion}"]


def test_a_key_that_is_not_text_is_an_unknown_key():
    lines = problems_of(dataset={1: 2}, dpo_training={3: 4})
    assert sorted(lines) == [
        "unknown key dataset.1; docs/configuration.md lists all keys",
        "unknown key dpo_training.3; docs/configuration.md lists all keys",
    ]


def test_all_problems_are_reported_at_once_one_line_each():
    lines = problems_of(
        risk_tset={},
        dataset={"val_ratio": 2, "max_len": 100, "max_prompt_length": 200},
        dpo_training={"epochs": "three", "learnin_rate": 1, "num_train_epochs": 2},
        beta_update={"alpha": -1, "beta_0": 3},
    )
    assert sorted(lines) == [
        "beta_update.alpha must be at least 0, got -1",
        "beta_update.beta_max must be at least beta_update.beta_0 (3), got 2.0 (the default)",
        "dataset.max_prompt_length must be less than dataset.max_len (100), got 200",
        "dataset.val_ratio must lie in [0, 1), got 2",
        "dpo_training.epochs must be a number, got 'three' (str)",
        "dpo_training.num_train_epochs is decided by dpo_training.epochs; "
        "remove it and set dpo_training.epochs instead",
        "unknown key dpo_training.learnin_rate; did you mean dpo_training.learning_rate?",
        "unknown key risk_tset; did you mean risk_test?",
    ]


def leaf_paths():
    return [
        path
        for path, _, section in walk(TrainingConfig)
        if section is None and "." in path and "<" not in path
    ]


@settings(max_examples=120, deadline=None)
@given(path=st.sampled_from(leaf_paths()), data=st.data())
def test_one_wrong_letter_still_finds_the_key(path, data):
    section, _, key = path.rpartition(".")
    position = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    typo = key[:position] + letter + key[position + 1 :]
    known = {known for known, _, _ in walk(TrainingConfig)}
    # A letter may bring the key nearer to its neighbour: beta_a is more like beta_max than like beta_0.
    neighbours = {other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section} - {key}
    if len(key) >= 5 and all(likeness(typo, other) <= likeness(typo, key) for other in neighbours):
        assert path in nearest(f"{section}.{typo}", sorted(known)) or typo in {
            k.split(".")[-1] for k in known
        }


def likeness(one, other):
    return SequenceMatcher(None, one, other).ratio()


def chosen_with(path):
    section = path.split(".")[0]
    if path == "objective.f_alpha":
        return {"objective": {"f_divergence": "alpha_divergence"}}
    if path == "reference_sync.mixup_alpha":
        return {"reference_sync": {"steps": 8}}
    if path == "objective.add.dpo":
        return {"method": {"loss": "ipo"}}
    return {"method": {"name": section}} if section in get_args(MethodName) else {}


def number_paths():
    # The bounds of beta, and the waits between tries, contradict each other as well; that is tested by itself.
    fields = {path: field for path, field, _ in walk(TrainingConfig) if field.annotation is float}
    return [
        path
        for path, field in fields.items()
        if not re.search(r"beta_update\.beta_|_backoff$|<", path) and bounds_of(field) is not None
    ]


def value_at(document, path):
    for key in path.split("."):
        document = document[key]
    return document


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(number_paths()), value=st.floats(-0.5, 2.5) | st.floats() | st.integers())
def test_a_number_is_accepted_exactly_within_its_documented_range(path, value):
    bounds = next(bounds_of(field) for known, field, _ in walk(TrainingConfig) if known == path)
    # A method's own settings go with the method.
    given = nested(path, value)
    for section, values in chosen_with(path).items():
        given.setdefault(section, {}).update(values)
    above = bounds.low is None or (value >= bounds.low if bounds.low_closed else value > bounds.low)
    below = bounds.high is None or (value <= bounds.high if bounds.high_closed else value < bounds.high)
    if above and below and math.isfinite(value):
        assert value_at(config_with(**given).to_dict(), path) == float(value)
    else:
        (problem,) = problems_of(**given)
        assert problem.startswith(f"{path} must ")


def test_the_configuration_survives_saving_and_loading(tmp_path):
    cfg = config_with(
        dataset={"max_length": 77},
        risk_test={"lambda": 0.3},
        peft={"target_modules": ["q_proj", "v_proj"]},
        schedule={"drift_per_1000": 1},
        dpo_training={"report": ["wandb"], "weight_decay": 1, "optim": "adamw_torch", "run_name": "1e3"},
    )
    assert get_training_config(cfg.to_dict()) == cfg
    path = tmp_path / "new" / "config.yaml"
    cfg.save(path)
    loaded = get_training_config(load_yaml(path))
    assert loaded == cfg
    assert loaded.hash() == cfg.hash()
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


def test_a_failed_save_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    config_with().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        config_with(ref_name="other").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_depends_on_values_and_not_on_order_or_spelling():
    left = {"policy_name": "m", "beta_update": {"gamma": 2, "alpha": 0.005}, "dataset": None}
    right = {"beta_update": {"alpha": 5e-3, "gamma": 2.0}, "policy_name": "m"}
    assert get_training_config(left).hash() == get_training_config(right).hash()
    assert len(config_with().hash()) == 64
    assert config_with(method={"seed": 1}).hash() != config_with().hash()


def test_the_input_is_not_changed_and_the_result_cannot_be():
    config = {
        "policy_name": "m",
        "dpo_training": {"weight_decay": 1, "save_strategy": "epoch"},
        "dataset": None,
    }
    cfg = get_training_config(config)
    assert config == {
        "policy_name": "m",
        "dpo_training": {"weight_decay": 1, "save_strategy": "epoch"},
        "dataset": None,
    }
    with pytest.raises(ValueError, match="frozen"):
        cfg.policy_name = "other"
    cfg.dpo_training.extra["adam_beta1"] = 0.5
    assert "adam_beta1" not in cfg.dpo_training.extra


def test_a_bare_text_is_the_path_of_a_model():
    cfg = get_evaluation_config({"models": {"a": "gpt2", "b": {"path": "runs/b", "revision": "main"}}})
    assert cfg.models["a"].path == "gpt2"
    assert cfg.models["b"].revision == "main"
    assert get_evaluation_config(cfg.to_dict()) == cfg
    assert get_evaluation_config({"models": None, "output": None}) == get_evaluation_config({})


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"models": {"a": 3}}, "models.a must be a section of keys and values, got 3"),
        (
            {"models": {"a": {"revision": "x"}}},
            "models.a.path is required: Hub name, folder (of a LoRA adapter too), .gguf file, package:NAME or a "
            "server's name of it; dataset:reference for the prompts' known answers, outputs:FILE for outputs in "
            "AlpacaEval's form or, in a .jsonl, Arena-Hard's and MT-Bench's.",
        ),
        (
            {"models": {"a": {"path": "p", "prompt_template": "TL;DR"}}},
            "models.a.prompt_template must contain {prompt}, got 'TL;DR' (str)",
        ),
        (
            {"models": {"a": "p", "b": "q"}, "baseline": "c"},
            "baseline must be one of models (a, b), got 'c' (str)",
        ),
        (
            {"judge": {"function": "a.b:c"}},
            "judge.function has no effect while judge.kind is openai: leave it out, got 'a.b:c' (str)",
        ),
        (
            {"judge": {"kind": "reward_model"}},
            "judge.reward_model is required while judge.kind is reward_model, got null (the default)",
        ),
        (
            {"judge": {"kind": "function", "function": "a.b:c", "logprobs": True}},
            "judge.logprobs has no effect while judge.kind is function: leave it out, got true (bool)",
        ),
        (
            {"judge": {"budget": {"calls": -1}}},
            "judge.budget.calls must be at least 0, got -1",
        ),
        (
            {"judge": {"prices": {"gpt-4.1": {"input": 1}}}},
            "judge.prices.gpt-4.1.output is required: Per million tokens of replies.",
        ),
        (
            {"judge": {"budget": {"call": 1}}},
            "unknown key judge.budget.call; did you mean judge.budget.calls?",
        ),
        ({"models": {"a": ""}}, "models.a.path must not be empty"),
        (
            {"models": {"a": {"path": "p", "revison": "x"}}},
            "unknown key models.a.revison; did you mean models.a.revision?",
        ),
        (
            {"dataset": {"meta_fields": ["id", 1]}},
            "dataset.meta_fields must be a list of text, got ['id', 1] (list)",
        ),
        (
            {"generation": {"temperature": 0, "do_sample": True}},
            "generation.do_sample must not be true while generation.temperature is 0, got true (bool)",
        ),
        (
            {"gpt4_oracle": {"initial_backoff": 90}},
            "gpt4_oracle.max_backoff must be at least gpt4_oracle.initial_backoff (90), "
            "got 60.0 (the default)",
        ),
        (
            {"gpt4_oracle": {"prompt_template": "{prompt} {output_a}"}},
            "gpt4_oracle.prompt_template must contain {output_b}, got '{prompt} {output_a}' (str)",
        ),
    ],
)
def test_mistakes_in_an_evaluation_file_are_worded_alike(sections, problem):
    assert evaluation_problems_of(**sections) == [problem]
