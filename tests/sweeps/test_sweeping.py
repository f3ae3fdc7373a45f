"""``dynamic-dpo sweep`` as a user runs it: one reference pass, stopped and gone on with, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import sweep
from dynamic_dpo.config import dump_yaml
from helpers_loops import TEMPLATE
from tiny import tiny_llama, word_tokenizer

pytestmark = pytest.mark.timeout(600)
NUM_PAIRS = 24


def save_model(folder: Path) -> str:
    tiny_llama(seed=3).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def write_config(folder: Path, model: str, **changed: Any) -> Path:
    draw = random.Random(4)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(number))

    pairs = [{"prompt": words(3), "chosen": words(4), "rejected": words(4)} for _ in range(NUM_PAIRS)]
    rows = folder / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = {
        "policy_name": model,
        "precision": "fp32",
        "dataset": {"dataset_name": str(rows), "subset": "train", "chat_template": True, "val_ratio": 0.25},
        "engine": {"reference_dir": str(folder / "reference")},
        "dpo_training": {
            "epochs": 2,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "warmup_steps": 0,
            "eval_steps": 5,
            "save_steps": 3,
            "use_cpu": True,
        },
        "method": {"name": "dpo"},
        **changed,
    }
    path = folder / "config.yaml"
    path.write_text(dump_yaml(settings))
    return path


def command_of(folder: Path, config: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--out", str(folder / "sweep"), *more]


GRID = ("beta_update.beta_0=.5", "dpo_training.learning_rate=1e-4,1e-3")
NAMES = {"learning_rate=1e-4", "learning_rate=1e-3"}


def summary_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "sweep" / "sweep.json").read_text())
    return content


def without_times(summary: dict[str, Any]) -> list[dict[str, Any]]:
    timed = ("seconds", "pairs_per_second", "reference_computed")
    return [{key: value for key, value in run.items() if key not in timed} for run in summary["runs"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert sweep.main(command_of(folder, write_config(folder, model), *GRID)) == 0
    return folder


def test_every_value_is_trained_with_and_the_reference_scored_once(whole: Path) -> None:
    summary = summary_of(whole)
    assert {run["name"] for run in summary["runs"]} == NAMES
    assert sum(run["reference_computed"] for run in summary["runs"]) == NUM_PAIRS
    slow, fast = sorted(summary["runs"], key=lambda run: abs(run["margin"]))
    assert (slow["name"], fast["name"]) == ("learning_rate=1e-4", "learning_rate=1e-3")
    assert summary["runs"] == sorted(summary["runs"], key=lambda run: run["loss"])


def test_the_figures_are_those_of_the_training_by_itself(whole: Path, model: str, tmp_path: Path) -> None:
    from dynamic_dpo.cli import train_dpo

    best = summary_of(whole)["runs"][0]
    run = tmp_path / "run"
    own = [GRID[0], *best["overrides"], f"dpo_training.save_dir={run}"]
    words = ["--config", str(whole / "config.yaml"), *own]
    assert train_dpo.main(words) == 0
    state = json.loads((run / "trainer_state.json").read_text())
    last = [entry for entry in state["log_history"] if "eval_loss" in entry][-1]
    assert (last["step"], last["eval_loss"]) == (state["global_step"], best["loss"])
    assert last["eval_rewards/accuracies"] == best["accuracy"]
    rewards = last["eval_rewards/chosen"] + last["eval_rewards/rejected"]
    assert best["drift"] == pytest.approx(-rewards / 2 / float(best["beta_final"]), rel=1e-5)


def test_the_page_names_best_command_and_all_trainings(whole: Path) -> None:
    page = (whole / "sweep" / "report.html").read_text()
    best = summary_of(whole)["runs"][0]
    assert f"train-dpo --config {whole / 'config.yaml'} {GRID[0]} {best['overrides'][0]}" in page
    assert all(run["name"] in page for run in summary_of(whole)["runs"])
    assert "held-out accuracy" in page


def test_a_value_can_be_added_and_nothing_is_trained_twice(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {run["name"]: run for run in summary_of(whole)["runs"]}
    grid = (GRID[0], "dpo_training.learning_rate=1e-4,1e-3,1e-2")
    assert sweep.main(command_of(whole, whole / "config.yaml", *grid)) == 0
    after = {run["name"]: run for run in summary_of(whole)["runs"]}
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    assert "3 trainings, 2 of them done before" in capsys.readouterr().err


def test_other_settings_are_refused_with_the_difference(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command_of(whole, whole / "config.yaml", *GRID, "dpo_training.epochs=3")
    assert sweep.main(words) == 2
    said = capsys.readouterr().err
    assert "was made with other settings: dpo_training.epochs was 2, is 3" in said.replace(
        "2.0", "2"
    ).replace("3.0", "3")


def test_a_killed_sweep_ends_with_the_same_table(whole: Path, model: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, model)
    words = [sys.executable, "-m", "dynamic_dpo.cli.main", "sweep", *command_of(tmp_path, config, *GRID)]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        seen = {*tmp_path.glob("sweep/runs/*/checkpoint-*")}
        for _ in range(2400):
            if {*tmp_path.glob("sweep/runs/*/checkpoint-*")} - seen or process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == (-9 if number == signal.SIGKILL else 143), said
    assert sweep.main(words[4:]) == 0
    names = {run["name"] for run in summary_of(tmp_path)["runs"]}
    reference = [run for run in without_times(summary_of(whole)) if run["name"] in names]
    assert without_times(summary_of(tmp_path)) == reference


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_of_eight_killed_ten_times_at_random_ends_with_the_same_table(
    model: str, tmp_path: Path
) -> None:
    grid = ("beta_update.beta_0=.05,.1,.3,.5", "dpo_training.learning_rate=1e-4,1e-3")
    begun = time.monotonic()
    (tmp_path / "once").mkdir()
    assert sweep.main(command_of(tmp_path / "once", write_config(tmp_path / "once", model), *grid)) == 0
    took = time.monotonic() - begun
    (tmp_path / "killed").mkdir()
    config = write_config(tmp_path / "killed", model)
    words = [
        sys.executable,
        "-m",
        "dynamic_dpo.cli.main",
        "sweep",
        *command_of(tmp_path / "killed", config, *grid),
    ]
    draw, kills, process = random.Random(0), 0, None
    while kills < 10:
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        try:
            process.wait(timeout=draw.uniform(0.05, 0.25) * took)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
            break
    # Each start gets a part of the whole, so that it cannot be over before most of the kills.
    assert kills >= 5
    assert sweep.main(words[4:]) == 0
    once, killed = (without_times(summary_of(tmp_path / name)) for name in ("once", "killed"))
    assert killed == once
    assert len(once) == 8
    # One of them may have died in the middle of the reference pass; what it had scored was kept.
    assert sum(run["reference_computed"] for run in summary_of(tmp_path / "killed")["runs"]) <= NUM_PAIRS


def test_several_at_once_score_the_reference_once_and_write_what_they_print(
    model: str, tmp_path: Path
) -> None:
    words = command_of(tmp_path, write_config(tmp_path, model), *GRID, "--processes", "2")
    assert sweep.main(words) == 0
    summary = summary_of(tmp_path)
    assert sum(run["reference_computed"] for run in summary["runs"]) == NUM_PAIRS
    logs = [tmp_path / "sweep" / "runs" / f"{run['name']}.log" for run in summary["runs"]]
    assert all("saved and checked" in log.read_text() for log in logs)


def test_a_training_that_fails_leaves_the_others_and_is_tried_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("dpo_training.learning_rate=1e-4,1e-3", "method.max_nonfinite=0")
    config = write_config(tmp_path, model)
    # Where a training's folder is to be stands a file.
    taken = tmp_path / "sweep" / "runs" / "learning_rate=1e-3"
    taken.parent.mkdir(parents=True)
    taken.write_text("")
    assert sweep.main(command_of(tmp_path, config, *grid)) == 1
    said = capsys.readouterr()
    assert "failed: learning_rate=1e-3 ended with exit code 2" in said.out
    assert [run["name"] for run in summary_of(tmp_path)["runs"]] == ["learning_rate=1e-4"]
    taken.unlink()
    assert sweep.main(command_of(tmp_path, config, *grid)) == 0
    assert len(summary_of(tmp_path)["runs"]) == 2


def test_an_evaluation_gives_win_rate_and_divergence(model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{n} w{n + 2}"}) + "\n" for n in range(6)))
    evaluation = tmp_path / "evaluation.yaml"
    evaluation.write_text(
        dump_yaml(
            {
                "dataset": {"name": str(prompts), "split": "train"},
                "generation": {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "device": "cpu"},
                "judge": {"kind": "function", "function": "helpers_loops:early_words"},
                "statistics": {"bootstrap": 100},
            }
        )
    )
    config = write_config(tmp_path, model)
    words = command_of(
        tmp_path, config, "dpo_training.learning_rate=1e-4,1e-2", "--evaluation", str(evaluation)
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        assert sweep.main(words) == 0
    runs = summary_of(tmp_path)["runs"]
    assert summary_of(tmp_path)["criterion"] == "win_rate"
    assert [run["win_rate"] for run in runs] == sorted((run["win_rate"] for run in runs), reverse=True)
    assert all(run["win_rate_low"] <= run["win_rate"] <= run["win_rate_high"] for run in runs)
    assert all(run["kl"] is not None for run in runs)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["beta_update.beta_0=.1"], "a setting with several values"),
        ([*GRID, "dataset.val_ratio=0"], "held-out pairs: set dataset.val_ratio"),
        ([*GRID, "dpo_training.eval_steps=null"], "set dpo_training.eval_steps"),
        ([*GRID, "dpo_training.save_dir=/tmp/x"], "dpo_training.save_dir cannot be given"),
        (["beta_update.beta_0=.1,abc"], "beta_update.beta_0"),
        ([*GRID, "--by", "win_rate"], "--by win_rate needs --evaluation"),
        (["method.name=dpo,ipo", "--by", "loss"], "numbers of different kinds"),
        ([*GRID, "--processes", "0"], "--processes must be at least 1"),
        ([*GRID, "--devices", "0,0"], "different GPUs"),
        ([*GRID, "--devices", "0,1", "--processes", "3"], "do not go together"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_trained(
    more: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(command_of(tmp_path, write_config(tmp_path, model), *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_list_of_settings_that_go_together(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.yaml"
    listed.write_text(
        "trainings:\n- {beta_update.beta_0: 0.1, dpo_training.learning_rate: 1e-4}\n- {method.name: ipo}\n"
    )
    words = command_of(
        tmp_path, write_config(tmp_path, model), "--list", str(listed), "dpo_training.epochs=1"
    )
    plan = sweep.build_plan(sweep.arguments_of(words))
    assert (plan.criterion, plan.shares_loss) == ("accuracy", False)
    first, second = plan.trainings
    assert first.settings["dpo_training"]["learning_rate"] == 1e-4
    assert second.settings["method"]["name"] == "ipo"
    assert all(training.settings["dpo_training"]["epochs"] == 1 for training in plan.trainings)
    listed.write_text("trainings: 5\n")
    assert sweep.main(words) == 2
    assert "expected `trainings:` with a list of settings" in capsys.readouterr().err
