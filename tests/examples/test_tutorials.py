"""The tutorials, run as their readers run them, on a tiny model in a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_loops import save_model
from places import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def run(script: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_pairs_become_a_model_with_its_pages(model: str, tmp_path: Path) -> None:
    printed = run("own_data.py", "--model", model, "--folder", "out", folder=tmp_path)
    assert re.search(r"^kept: step \d+ of \d+, held-out loss 0\.\d{3}", printed, re.M)
    assert re.search(r"^margin of all pairs: [+-]\d", printed, re.M)
    for page in ("run/report.html", "inspection/inspection.html"):
        assert (tmp_path / "out" / page).is_file()
    assert (tmp_path / "out" / "run" / "model.safetensors").is_file()


def test_a_method_of_ones_own_moves_its_beta(model: str, tmp_path: Path) -> None:
    printed = run(
        "own_method.py", "--model", model, "--folder", "out", "--learning-rate", "1e-3", folder=tmp_path
    )
    betas = [float(beta) for beta in re.findall(r"beta (\d\.\d{4})$", printed, re.M)]
    assert len(betas) == 8
    # Before the first margins that differ it is the base.
    assert betas[0] == pytest.approx(0.1, abs=1e-3)
    assert betas[-1] > betas[0]


def test_controllers_are_audited_on_noise_and_on_a_run(model: str, tmp_path: Path) -> None:
    run("own_data.py", "--model", model, "--method", "risk", "--folder", "out", folder=tmp_path)
    printed = run("audit_controller.py", "out/run", folder=tmp_path)
    drifts = dict(re.findall(r"^  (\w+) +([+-]\d+\.\d\d)$", printed.split("the same margins")[0], re.M))
    # What the pages say of them: mode paper rises on noise, exact does not, and the schedule has paper's drift.
    assert float(drifts["paper"]) > 0.5
    assert abs(float(drifts["exact"])) < 0.3
    assert float(drifts["schedule"]) == pytest.approx(float(drifts["paper"]), abs=0.5)
    assert re.search(r"^  exact +\d\.\d{4}$", printed, re.M)
