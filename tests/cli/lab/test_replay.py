"""Replaying a run's margins: its own betas to the last bit, and clear words where that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamic_dpo.cli import train_dpo
from dynamic_dpo.cli.lab import replay as command
from dynamic_dpo.config import dump_yaml
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.lab import replay
from dynamic_dpo.lab.laws import empirical_law
from dynamic_dpo.methods import DPO, Schedule, ScheduleConfig, SimPO
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.runs.margin_log import MarginLogConfig
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

SETTINGS: dict[str, Any] = {
    "warmup_steps": 3,
    "alpha": 0.2,
    "delta": 0.25,
    "window_multiple": 2,
    "momentum": 0.1,
}


def train(
    folder: Path, method: PreferenceMethod, *, resume: bool = False, **arguments: Any
) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        tiny_llama(),
        args=training_arguments(
            folder,
            **{"learning_rate": 5e-3, "gradient_accumulation_steps": 2, "num_train_epochs": 4, **arguments},
        ),
        # 21 pairs in device batches of 4, two a step: the epoch's last controller batch has 1 pair.
        train_dataset=random_pairs(21),
        processing_class=word_tokenizer(),
        method=method,
        margin_log=MarginLogConfig(),
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def risk(mode: str, scope: str = "micro", **more: Any) -> Risk:
    config = RiskConfig(**{**SETTINGS, "mode": mode, "scope": scope, "margin_budget": 1.0, **more})
    return Risk(config, pairs_per_update=8 if scope == "step" else 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(folder, risk("exact"))
    return folder


@pytest.mark.parametrize(
    ("mode", "scope"), [("paper", "micro"), ("exact", "step"), ("rm", "micro"), ("target", "step")]
)
def test_a_run_with_its_own_settings_gives_its_own_betas_exactly(
    tmp_path: Path, mode: str, scope: str
) -> None:
    trainer = train(tmp_path, risk(mode, scope, monitor="report"))
    result = replay(tmp_path, ["fixed"])
    own = result.traces[0]
    logged = [
        json.loads(line)["beta"]
        for line in (tmp_path / "logs/margins/controller.jsonl").read_text().splitlines()
    ]
    assert own.name == f"own ({mode})"
    assert own.betas == logged == result.logged
    assert result.deviation == 0
    assert len(set(own.betas)) > 5, "a beta that stands still proves nothing"
    assert own.betas[-1] == trainer.method.beta
    assert own.alarms is not None
    assert result.sizes[:3] == ([8, 8, 5] if scope == "step" else [4, 4, 4])
    assert min(result.sizes) < result.pairs_per_update
    assert set(result.traces[1].betas) == {0.1}


def test_a_resumed_run_is_replayed_as_one(tmp_path: Path) -> None:
    train(tmp_path, risk("exact"), max_steps=5, save_strategy="steps", save_steps=5)
    train(tmp_path, risk("exact"), max_steps=10, save_strategy="steps", save_steps=5, resume=True)
    result = replay(tmp_path)
    assert len(result.sizes) > 15
    assert result.deviation == 0
    assert [trace.name for trace in result.traces] == [
        "own (exact)",
        "paper",
        "exact",
        "rm",
        "schedule",
        "fixed",
    ]


def test_a_run_of_the_clock_is_replayed(tmp_path: Path) -> None:
    train(tmp_path, Schedule(ScheduleConfig(drift_per_1000=80.0, warmup_steps=3)))
    result = replay(tmp_path, ["exact"], own=RiskConfig(**SETTINGS))
    assert result.traces[0].name == "own (schedule)"
    assert result.deviation == 0
    assert result.traces[0].betas[-1] > 0.1


def test_other_settings_are_tried_on_the_runs_own_mode(run: Path) -> None:
    result = replay(run, settings={"alpha": 0.0})
    assert [trace.name for trace in result.traces] == ["own (exact)", "exact"]
    assert set(result.traces[1].betas) == {0.1}
    assert len(set(result.traces[0].betas)) > 5


def test_what_is_not_finite_is_left_out_as_the_trainer_does(run: Path, tmp_path: Path) -> None:
    folder = moved(run, tmp_path)
    path = next(folder.glob("logs/margins/epoch_000/step_00005.npy"))
    margins = np.load(path)
    margins[0] = np.nan
    np.save(path, margins)
    result = replay(folder, ["paper"])
    assert np.isfinite(result.traces[1].betas).all()
    # Of three margins a third can exceed, of four a quarter.
    assert result.traces[1].p_hats[4] in (pytest.approx(k / 3) for k in range(4))
    assert np.isfinite(empirical_law(folder).draw(np.random.default_rng(0), (10, 1000))).all()


def test_the_empirical_law_is_that_of_the_logged_margins(run: Path) -> None:
    law = empirical_law(run)
    drawn = law.draw(np.random.default_rng(0), (50, 200))
    logged = np.concatenate([np.load(path) for path in run.glob("logs/margins/epoch_*/step_*.npy")])
    assert set(np.unique(drawn)) <= set(logged.tolist())
    assert drawn.mean() == pytest.approx(logged.mean(), abs=float(4 * logged.std() / 100))


def test_a_missing_update_is_named(run: Path, tmp_path: Path) -> None:
    folder = moved(run, tmp_path)
    next(folder.glob("logs/margins/epoch_000/step_00003.npy")).unlink()
    with pytest.raises(DataError, match=r"lacks the margins of 1 of 24 controller updates \(3\)"):
        replay(folder)


def test_a_damaged_file_is_named(run: Path, tmp_path: Path) -> None:
    folder = moved(run, tmp_path)
    path = next(folder.glob("logs/margins/epoch_000/step_00003.npy"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"step_00003.* cannot be read"):
        replay(folder)


def moved(run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "moved"
    shutil.copytree(run, folder)
    summary = json.loads((folder / "run_summary.json").read_text())
    summary["margins_path"] = "gone/margins.jsonl"
    (folder / "run_summary.json").write_text(json.dumps(summary))
    return folder


def test_folders_that_cannot_be_replayed_say_why(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        replay(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no training run"):
        replay(tmp_path)
    folder = moved(run, tmp_path)
    shutil.rmtree(folder / "logs/margins/epoch_000")
    for number in range(1, 4):
        shutil.rmtree(folder / f"logs/margins/epoch_00{number}")
    with pytest.raises(DataError, match="has no saved margins"):
        replay(folder)


def test_runs_of_other_methods_are_refused_with_the_reason(tmp_path: Path) -> None:
    for method, message in (
        ({"name": "beta_dpo"}, "a run of method beta_dpo"),
        ({"name": "risk", "loss": SimPO().summary()}, "steered the beta of simpo"),
        ({"name": "dpo"}, "does not say what its controller's settings were"),
    ):
        (tmp_path / "run_summary.json").write_text(json.dumps({"method": method}))
        log = tmp_path / "logs/margins/epoch_000"
        log.mkdir(parents=True, exist_ok=True)
        np.save(log / "step_00001.npy", np.zeros(4, dtype=np.float32))
        with pytest.raises(DataError, match=message):
            replay(tmp_path)


def test_unknown_settings_and_modes_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting detla"):
        replay(run, settings={"detla": 0.1})
    with pytest.raises(ConfigError, match="mode must be one of paper, exact"):
        replay(run, ["fast"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="margin_budget is needed by mode target"):
        replay(run, ["target"], settings={"margin_budget": None})
    with pytest.raises(ConfigError, match="delta must be a finite number, got 'much'"):
        replay(run, settings={"delta": "much"})


def test_the_command_prints_a_table_and_writes_json_and_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "replay.json", tmp_path / "replay.png"]
    code = command.main(
        [
            str(run),
            "--mode",
            "paper,rm",
            "--set",
            "alpha=0.1",
            "--json",
            str(files[0]),
            "--plot",
            str(files[1]),
        ]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "gives the betas of the run's log exactly" in out
    result = json.loads(files[0].read_text())
    assert [trace["name"] for trace in result["traces"]] == ["own (exact)", "paper", "rm"]
    assert result["deviation"] == 0
    assert files[1].read_bytes()[:4] == b"\x89PNG"


def test_the_command_says_in_one_line_what_is_wrong(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert command.main([str(run), "--mode", "fast"]) == 2
    assert command.main([str(run), "--set", "alpha"]) == 2
    assert command.main([str(run), "--plot", str(tmp_path / "beta.doc")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "holds no training run" in errors[0]
    assert "override 'alpha' has no '='; expected key=value" in errors[2]


def test_a_fixed_beta_is_replayed_with_given_settings(tmp_path: Path) -> None:
    train(tmp_path, DPO(), num_train_epochs=1)
    result = replay(tmp_path, ["paper"], own=RiskConfig(warmup_steps=1, beta_0=0.1))
    assert result.traces[0].name == "own (fixed)"
    assert result.deviation == 0


def test_an_interrupted_run_is_replayed_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = word_tokenizer(template="{% for m in messages %}w1 {{ m['content'] }} </s>{% endfor %}")
    tiny_llama().save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": "w5 w6", "chosen": f"w{10 + k} w{11 + k}", "rejected": f"w{40 + k}"} for k in range(22)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    settings = {
        "policy_name": str(tmp_path / "model"),
        "precision": "fp32",
        "dataset": {"dataset_name": str(tmp_path / "rows.jsonl"), "val_ratio": 0.0},
        "dpo_training": {
            "save_dir": str(run),
            "batch_size": 2,
            "gradient_accumulation": 3,
            "epochs": 3,
            "learning_rate": 5e-3,
            "warmup_steps": 0,
            "eval_steps": None,
            "save_steps": None,
            "disable_tqdm": True,
        },
        "method": {"mode": "rm", "scope": "step", "alpha_scale": "auto"},
        "risk_test": {"beta_warmup": 2},
    }
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    assert train_dpo.main(["--config", str(tmp_path / "config.yaml")]) == 0
    (run / "run_summary.json").unlink()
    capsys.readouterr()
    assert command.main([str(run), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["deviation"] == 0
    assert result["pairs_per_update"] == 6
    assert len(set(result["logged"])) > 3
