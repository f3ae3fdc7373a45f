"""``dynamic-dpo iterate`` as a user runs it: one command, stopped and gone on with; and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import iterate
from dynamic_dpo.config import dump_yaml
from helpers_loops import loop_settings, save_model

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def write(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "loop.yaml"
    path.write_text(dump_yaml(settings))
    return path


def begin(path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "dynamic_dpo.cli.main", "iterate", "--config", str(path)]
    # The loop's stages are processes of their own: they find the tests' scorer by the path alone.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_one_command_runs_the_rounds_and_goes_on_where_it_was_stopped(tmp_path: Path, model: str) -> None:
    path = write(tmp_path, loop_settings(tmp_path, model, rounds=2))
    first = begin(path)
    manifest = tmp_path / "loop" / "round-1" / "manifest.json"
    for _ in range(2400):
        if manifest.exists() or first.poll() is not None:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 143, output
    assert "SIGTERM" in output
    done = json.loads(manifest.read_text())["stages"]
    assert "rollout" in done

    second = begin(path)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "round 1: rollout: done before" in output
    for title in ("round 1: evaluate", "round 2: rollout", "round 2: train", "round 2: evaluate"):
        assert f"{title}: begins" in output
    assert output.splitlines()[-1] == str(tmp_path / "loop" / "report.html")
    summary = json.loads((tmp_path / "loop" / "summary.json").read_text())
    assert len(summary["rounds"]) == 2
    assert all(seconds > 0 for figures in summary["rounds"] for seconds in figures["seconds"].values())


def change(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[last] = value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout.output_dir": "here"}, "rollout.output_dir cannot be given: the loop says that itself"),
        (
            {"rollout.model_name": "m", "dpo_training.save_dir": "d"},
            "rollout.model_name, dpo_training.save_dir cannot",
        ),
        ({"rollout.shard": "1/2"}, "rollout.shard cannot be given"),
        ({"dpo_training.resume": True}, "dpo_training.resume cannot be given"),
        ({"rollout.engine": "server"}, "rollout.engine cannot be server in a loop"),
        (
            {"evaluation.generation.engine": "server"},
            "evaluation.generation.engine cannot be server in a loop",
        ),
        (
            {"ref_name": "m", "iterate.reference": "previous"},
            "ref_name has no effect while iterate.reference is",
        ),
        ({"rollout.limit": None}, "rollout.limit is required while iterate.fresh_prompts is true"),
        (
            {"iterate.kl_budget": 3.0, "evaluation.generation.top_p": 0.9},
            "iterate.kl_budget needs outputs that",
        ),
        (
            {"margin_log.log_dir": "/logs"},
            "margin_log.log_dir must be a folder within each run's own, got /logs",
        ),
        ({"evaluation.dataset.name": None}, "evaluation.dataset.name is required"),
        ({"rollout.function": None}, "rollout.function is required while rollout.judge is function"),
        ({"evaluation.judge.kind": "openai"}, "evaluation"),
        ({"iterate.rounds": 0}, "iterate.rounds must be at least 1, got 0"),
        ({"iterate.round": 2}, "unknown key iterate.round; did you mean iterate.rounds?"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(
    tmp_path: Path,
    model: str,
    changes: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = loop_settings(tmp_path, model)
    for key, value in changes.items():
        change(settings, key, value)
    assert iterate.main(["--config", str(write(tmp_path, settings))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "loop").exists()


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert iterate.main(["--help-all"]) == 0
    shown = capsys.readouterr().out
    for key in ("iterate.reference", "evaluation.judge.kind", "rollout.limit", "dpo_training.learning_rate"):
        assert f"  {key} = " in shown
