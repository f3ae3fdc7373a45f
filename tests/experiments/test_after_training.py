"""The table of what held-out pairs can do in the bandit: its runs are DPO's own, and loss decides what is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from places import ROOT

# The experiments are no part of the installed package.
sys.path.insert(0, str(ROOT))

from experiments.bandit.after_training import BEGIN, COLUMNS, GRID, RECORD, held_out_loss, main, strongest
from experiments.bandit.arms import CONDITIONS
from experiments.bandit.comparison import Plan
from experiments.bandit.store import Store
from experiments.bandit.world import WorldConfig, draw_pairs, draw_world, log_softmax


def test_the_record_holds_dpos_own_runs_and_the_page_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(text) for text in RECORD.read_text(encoding="utf-8").splitlines()]
    assert [line["condition"] for line in lines] == [condition.name for condition in CONDITIONS]
    plan, store = Plan(), Store(ROOT / "experiments" / "bandit" / "results.jsonl")
    for line, condition in zip(lines, CONDITIONS, strict=True):
        published = store.lines[plan.cell(plan.arms[0], condition).key]["regret"]
        assert line[COLUMNS[0]] == pytest.approx(published, rel=1e-3)
    main([])
    page = (ROOT / "docs" / "after_training.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page.split(BEGIN)[1]


def test_a_run_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.jsonl"
    options = ["--out", str(out), "--seeds", "2", "--updates", "80", "--conditions", "1"]
    main(options)
    first, written = capsys.readouterr().out, out.read_text()
    main(options)
    assert (capsys.readouterr().out, out.read_text()) == (first, written)
    line = json.loads(written)
    assert all(0 < step <= 80 and step % 2 == 0 for step in line["kept step"])
    assert all(strength in GRID for strength in line["chosen c"])


def test_the_strength_is_the_one_with_the_least_held_out_loss() -> None:
    config = WorldConfig(num_contexts=4, num_actions=5)
    world = draw_world(config, 0)
    held_out = draw_pairs(world, 200, np.zeros(4), 1)
    policy = log_softmax(world.reference_logps + 3.0 * world.rewards / world.beta_0)
    strength, logps = strongest(world, policy, held_out)
    losses = {
        c: held_out_loss(
            world, log_softmax(world.reference_logps + 3.0 * c * world.rewards / world.beta_0), held_out
        )
        for c in GRID
    }
    assert strength == min(losses, key=lambda c: losses[c])
    assert held_out_loss(world, logps, held_out) == pytest.approx(losses[strength])
    assert held_out_loss(world, world.reference_logps, held_out) == pytest.approx(np.log(2))
