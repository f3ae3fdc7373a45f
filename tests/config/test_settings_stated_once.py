"""A setting is stated in one place: change it there, and files, the flat class and the documentation follow."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from dynamic_dpo import RiskBetaDPOConfig
from dynamic_dpo.config import get_training_config
from dynamic_dpo.config.key_reference import describe_keys, render_help
from dynamic_dpo.config.phrases import shown
from dynamic_dpo.config.schema import TrainingConfig
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import METHODS, RiskConfig, ScheduleConfig
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.utils.settings import check_settings, file_defaults, file_keys, setting, stated_by
from places import SOURCE

FLAT = (RiskConfig, MarginLogConfig)

# Another default for every setting of the flat class: right in itself and beside the others.
OTHER: dict[str, Any] = {
    "delta": 0.2,
    "momentum": 0.07,
    "beta_0": 0.3,
    "alpha": 0.006,
    "gamma": 3.0,
    "beta_min": 0.01,
    "beta_max": 4.0,
    "warmup_steps": 7,
    "mode": "rm",
    "scope": "step",
    "alpha_scale": 2.0,
    "window_multiple": 9,
    "seed": 5,
    "margin_budget": 12.0,
    "gain_p": 0.5,
    "gain_i": 0.007,
    "monitor": "warn",
    "monitor_rate": 0.6,
    "monitor_threshold": 900.0,
    "log_dir": "other/margins",
    "jsonl_name": "other.jsonl",
    "jsonl_sample_size": 8,
    "save_per_rank": True,
}
OTHER_IN_FILES = {"momentum": 0.3}

READ = """
import json
from dataclasses import asdict
import dynamic_dpo
from dynamic_dpo import RiskBetaCallback, RiskBetaDPOConfig
from dynamic_dpo.config import get_training_config
from dynamic_dpo.config.key_reference import render_help, render_markdown
from dynamic_dpo.lab import simulate
from dynamic_dpo.methods import Risk, RiskConfig, ScheduleConfig
from dynamic_dpo.runs.margin_log import MarginLogConfig

config = get_training_config({"policy_name": "m"})
print(json.dumps({
    "where": dynamic_dpo.__file__,
    "flat": asdict(RiskBetaDPOConfig()),
    "callback": asdict(RiskBetaCallback().config),
    "controller": asdict(Risk().config),
    "schedule": asdict(ScheduleConfig()),
    "lab": asdict(simulate(["rm"], n=[4], updates=1, chains=2).config),
    "files": asdict(config.read(RiskConfig)) | asdict(config.read(MarginLogConfig)),
    "help": render_help(),
    "markdown": render_markdown(),
}))
"""


def with_other_defaults(text: str) -> str:
    """Return a module's source with the defaults of its `setting` calls replaced by those of `OTHER`."""
    changes: list[tuple[int, int, int, Any]] = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=ast.Name(id="setting")) as call):
                pairs = [(call.args[0], OTHER[name])]
                pairs += [(k.value, OTHER_IN_FILES[name]) for k in call.keywords if k.arg == "in_files"]
                for value, new in pairs:
                    assert not isinstance(value, ast.Constant) or value.value != new
                    assert value.end_col_offset is not None
                    changes.append((value.lineno, value.col_offset, value.end_col_offset, new))
    lines = text.splitlines()
    for number, start, end, new in sorted(changes, reverse=True):
        line = lines[number - 1]
        lines[number - 1] = f"{line[:start]}{new!r}{line[end:]}"
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package says of itself in which each default was changed where it is stated."""
    copy = tmp_path_factory.mktemp("copy") / "dynamic_dpo"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("methods/risk/config.py", "runs/margin_log.py"):
        (copy / name).write_text(
            with_other_defaults((copy / name).read_text(encoding="utf-8")), encoding="utf-8"
        )
    run = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, Any] = json.loads(run.stdout)
    assert Path(said["where"]).is_relative_to(copy)
    return said


@pytest.mark.parametrize("name", OTHER)
def test_a_default_changed_where_it_is_stated_is_changed_everywhere(
    changed: dict[str, Any], name: str
) -> None:
    (component,) = (config for config in FLAT if name in {entry.name for entry in fields(config)})
    in_files = OTHER_IN_FILES.get(name, OTHER[name])
    assert changed["flat"][name] == OTHER[name]
    key = file_keys(component).get(name)
    if component is RiskConfig:
        assert changed["callback"][name] == changed["controller"][name] == OTHER[name]
        assert changed["schedule"].get(name, OTHER[name]) == OTHER[name]
        assert changed["lab"][name] == in_files
        assert key is not None
    if key is not None:
        assert changed["files"][name] == in_files
        assert f"  {key.path} = {shown(in_files)}  (" in changed["help"]
        (row,) = [line for line in changed["markdown"].splitlines() if line.startswith(f"| `{key.path}` |")]
        assert row.split(" | ")[2] == f"`{shown(in_files)}`"


def test_every_setting_of_the_flat_class_was_changed() -> None:
    assert {entry.name for entry in fields(RiskBetaDPOConfig)} == {*OTHER, "log_margins"}
    assert {entry.name for config in FLAT for entry in fields(config)} == set(OTHER)


# ---- every setting of every component ----

STATED = [(config, entry.name) for config in FLAT for entry in fields(config)]


@pytest.mark.parametrize(("component", "name"), STATED)
def test_files_flat_class_and_documentation_say_what_is_stated(component: Any, name: str) -> None:
    (entry,) = (entry for entry in fields(component) if entry.name == name)
    assert getattr(RiskBetaDPOConfig(), name) == entry.default
    assert f"\n        {name}: {stated_by(entry).description}" in str(RiskBetaDPOConfig.__doc__)
    key = file_keys(component).get(name)
    if key is None:
        assert name == "jsonl_name"
        return
    (info,) = (info for info in describe_keys(TrainingConfig) if info.path == key.path)
    in_files = getattr(file_defaults(component), name)
    assert getattr(get_training_config({"policy_name": "m"}).read(component), name) == in_files
    assert (info.default, info.meaning) == (shown(in_files), stated_by(entry).description)
    bounds = stated_by(entry).bounds
    assert bounds is None or bounds.label() in info.type


@pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.Settings], ids=lambda method: method.name
)
def test_every_key_that_a_method_names_is_a_key_of_the_file(method: Any) -> None:
    known = {info.path for info in describe_keys(TrainingConfig)}
    assert {key.path for key in file_keys(method.Settings, method.name).values()} <= known


def test_only_momentum_has_another_default_in_files() -> None:
    # Files follow the paper's 0.1, Python the original's 0.05.
    own, in_files = RiskConfig(), file_defaults(RiskConfig)
    assert {e.name for e in fields(own) if getattr(own, e.name) != getattr(in_files, e.name)} == {"momentum"}
    assert (own.momentum, in_files.momentum) == (0.05, 0.1)


@pytest.mark.parametrize("name", [entry.name for entry in fields(RiskConfig)])
def test_a_value_out_of_range_is_refused_alike_in_python_and_in_files(name: str) -> None:
    (entry,) = (entry for entry in fields(RiskConfig) if entry.name == name)
    key, bounds = file_keys(RiskConfig)[name], stated_by(entry).bounds
    if bounds is None:
        return
    below = int(bounds.low) - 1 if bounds.low is not None else None
    assert below is not None
    wanted = bounds.requirement()
    for build in (RiskConfig, RiskBetaDPOConfig):
        with pytest.raises(ConfigError, match="^" + re.escape(f"{name} {wanted}")):
            build(**{name: below})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        get_training_config({"policy_name": "m", key.section: {key.key: below}})
    assert f"{key.path} {wanted}, got {below}" in str(caught.value).splitlines()


def test_the_schedule_has_the_bounds_of_the_risk_controller_but_may_start_at_once() -> None:
    for entry in fields(ScheduleConfig):
        if entry.name != "drift_per_1000":
            assert entry.default == getattr(RiskConfig, entry.name)
    assert ScheduleConfig(warmup_steps=0).warmup_steps == 0
    with pytest.raises(ConfigError, match=r"beta_max must be at least beta_0 \(0.1\), got 0.05"):
        ScheduleConfig(beta_max=0.05)


# ---- the mechanism ----


@dataclass(frozen=True)
class Sample:
    share: float = setting(0.5, "A share.", gt=0, le=1)
    count: int | None = setting(None, "A count.", key="other.lambda", in_files=3, ge=1)
    word: str = setting("a", "A word.", not_empty=True)

    def __post_init__(self) -> None:
        check_settings(self)


def test_a_setting_stands_under_its_own_name_or_under_the_key_it_names() -> None:
    keys = file_keys(Sample, "sample")
    assert keys["share"] == ("sample", "share", "share")
    # No attribute can be named lambda.
    assert keys["count"] == ("other", "lambda", "count")
    assert set(file_keys(Sample)) == {"count"}
    assert file_defaults(Sample) == Sample(count=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0}, r"share must lie in \(0, 1\], got 0"),
        ({"share": "much"}, "share must be a finite number, got 'much'"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"word": ""}, "word must not be empty, got ''"),
    ],
)
def test_what_is_stated_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Sample(**given)


def test_a_field_without_a_meaning_is_refused() -> None:
    @dataclass(frozen=True)
    class Mute:
        gain: float = 1.0

    with pytest.raises(TypeError, match="the setting gain has no meaning"):
        file_keys(Mute)


# ---- the documentation of a choice between a number and a word ----


def test_a_number_or_a_word_is_documented_with_the_numbers_range() -> None:
    (info,) = (info for info in describe_keys(TrainingConfig) if info.path == "method.alpha_scale")
    assert info.type == "number > 0 or auto"
    assert "method.alpha_scale = 1.0  (number > 0 or auto)" in render_help()
    assert get_args(
        type(get_training_config({"policy_name": "m"}).method).model_fields["mode"].annotation
    ) == (
        "paper",
        "exact",
        "rm",
        "target",
    )
