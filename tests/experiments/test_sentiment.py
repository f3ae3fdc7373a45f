"""The experiment on a language model: what it trains on, what it says of that, and that it goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_loops import save_model
from places import ROOT

# The experiments are no part of the installed package.
sys.path.insert(0, str(ROOT))

from experiments.record import Record
from experiments.sentiment import runs, world
from experiments.sentiment.arms import AFTER_TRAINING, ARMS, Arm, dpo
from experiments.sentiment.comparison import Plan, quick_plan, results_of, run, whole_plan
from experiments.sentiment.page import after_training_table, compare, whole_table
from experiments.sentiment.runs import START, Cell
from experiments.sentiment.statistics import divergence, estimate, wins_at_equal_divergence, wins_over
from experiments.sentiment.world import FEW, FLIPPED, MANY, Condition, Task

from dynamic_dpo.cli.build_rollout import build_plan
from dynamic_dpo.config import apply_overrides, get_training_config

TINY = Condition("tiny", 8, 1)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt_messages": [{"role": "user", "content": prompt}],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_ids": [1, len(chosen)],
        "rejected_ids": [2, len(rejected)],
        "metadata": {"score_chosen": 1.0},
    }


def many_pairs() -> list[dict[str, Any]]:
    prompts = world.asked_prompts(Task())
    return [
        pair(prompt, f"{number} good {n}", f"{number} bad {n}")
        for number, prompt in enumerate(prompts)
        for n in range(3)
    ]


def test_what_is_trained_on_held_out_and_measured_by_shares_no_prompt() -> None:
    task = Task()
    measured = [prompt[0]["content"] for prompt in world.measured_prompts(task)]
    train, held_out = world.split_pairs(many_pairs(), MANY, 0, task.num_held_out)
    sets = [
        set(measured),
        {world.prompt_of(row) for row in train},
        {world.prompt_of(row) for row in held_out},
    ]
    assert len(sets[0]) == task.num_prompts == 128
    assert (len(train), len(held_out)) == (640, 96)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    # And no thing to review either.
    things = {thing for kind in world.THINGS.values() for thing in kind} | set(world.FURTHER_THINGS)
    about = [
        {thing for thing in things if any(t.format(thing) in one for t in world.TEMPLATES)} for one in sets
    ]
    assert min(map(len, about)) > 10
    assert not about[0] & about[1]
    assert not about[0] & about[2]
    assert not about[1] & about[2]


def test_fewer_pairs_are_a_part_of_the_more_and_flips_exchange_all_of_a_side() -> None:
    rows = many_pairs()
    many, held_out = world.split_pairs(rows, MANY, 3, 96)
    few, _ = world.split_pairs(rows, FEW, 3, 96)
    flipped, flipped_held_out = world.split_pairs(rows, FLIPPED, 3, 96)
    assert few == many[:128]
    assert world.split_pairs(rows[::-1], MANY, 3, 96) == (many, held_out)
    assert world.split_pairs(rows, MANY, 4, 96)[0] != many
    changed = [now != before for now, before in zip(flipped, many, strict=True)]
    # 640 draws of .2: within four standard deviations.
    assert abs(sum(changed) - 128) < 4 * (640 * 0.2 * 0.8) ** 0.5
    assert 0 < sum(a != b for a, b in zip(flipped_held_out, held_out, strict=True)) < 96
    for now, before in zip(flipped, many, strict=True):
        if now != before:
            assert now == {
                **before,
                "chosen": before["rejected"],
                "rejected": before["chosen"],
                "chosen_ids": before["rejected_ids"],
                "rejected_ids": before["chosen_ids"],
            }


def test_too_few_pairs_are_named() -> None:
    with pytest.raises(ValueError, match=r"seed 5 gave .* where 640 and 96 are needed"):
        world.split_pairs(many_pairs()[:90], MANY, 5, 96)


def test_every_arm_is_a_configuration_that_is_accepted_and_the_rollout_too(tmp_path: Path) -> None:
    for arm in ARMS:
        overrides = [f"{key}={json.dumps(value)}" for key, value in {**runs.SHARED, **arm.settings}.items()]
        overrides += [
            'policy_name="a/model"',
            'dataset.dataset_name="pairs"',
            'dataset.eval_dataset_name="held_out"',
        ]
        config = get_training_config(apply_overrides({}, overrides))
        assert config.dpo_training.learning_rate > 0
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    plan = build_plan(get_training_config(world.rollout_settings(Task(), tmp_path, 7)))
    assert (plan.pairing.max_pairs, plan.pairing.min_gap) == (3, 0.4)


def test_a_key_hangs_on_all_that_decides_a_result() -> None:
    cell = Cell(ARMS[0], Task(), MANY, 0, 1e-5)
    others = [
        replace(cell, arm=ARMS[1]),
        replace(cell, arm=replace(ARMS[0], strength=True)),
        replace(cell, arm=None),
        replace(cell, task=Task(num_samples=2)),
        replace(cell, condition=FEW),
        replace(cell, condition=FLIPPED),
        replace(cell, seed=1),
        replace(cell, learning_rate=2e-5),
    ]
    assert len({cell.key, *(other.key for other in others)}) == len(others) + 1
    # The model before training is the same in every condition and at every rate.
    start = replace(cell, arm=None)
    assert start.key == replace(start, condition=FEW, learning_rate=1.0).key
    assert start.key != replace(start, seed=1).key


def test_every_cell_of_the_plans_is_one_of_its_own() -> None:
    for plan, number in ((whole_plan(), 3 * (14 + 4 + 14)), (quick_plan(), 4)):
        cells = [*plan.tuning(), *plan.starts(), *plan.cells(1e-5)]
        assert (
            len({cell.key for cell in cells}) == len(cells) == number + len(plan.tuning()) + len(plan.seeds)
        )
        assert len({cell.title for cell in cells}) == len(cells)


def line(scores: list[list[float]], kl: float) -> dict[str, Any]:
    return {"scores": scores, "kls": [kl] * len(scores)}


def test_a_win_rate_counts_all_pairs_of_answers_and_ties_half() -> None:
    ours, theirs = line([[0.5, 0.1], [0.0, 0.0]], 1.0), line([[0.1, 0.3], [0.0, 0.9]], 0.0)
    # .5 beats both, .1 ties one and loses one: 2.5 of 4; then two ties and two losses: 1 of 4.
    assert wins_over(ours, theirs).tolist() == [0.625, 0.25]
    assert (wins_over(ours, theirs) + wins_over(theirs, ours)).tolist() == [1.0, 1.0]


def test_at_equal_divergence_the_rival_is_a_mixture_of_its_neighbours() -> None:
    start, near, far = line([[0.0]], 0.0), line([[0.4]], 2.0), line([[0.8]], 6.0)
    # Three quarters of the way from 2 to 6: beats the nearer, loses to the farther.
    ours = line([[0.6]], 5.0)
    wins = wins_at_equal_divergence(ours, [far, start, near])
    assert wins is not None
    assert wins.tolist() == [0.25]
    # A member of the frontier ties with itself.
    same = wins_at_equal_divergence(near, [start, near, far])
    assert same is not None
    assert same.tolist() == [0.5]
    assert wins_at_equal_divergence(line([[0.9]], 6.1), [start, near, far]) is None


def test_an_interval_over_prompts_covers_what_is_true() -> None:
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        one = estimate(0.3 + generator.normal(size=(2, 60)))
        covered += one.low <= 0.3 <= one.high
    # 95 %, less three standard deviations and the bootstrap's own shortness at 60 prompts.
    assert covered >= 0.89 * 200


def test_what_the_tables_say_is_what_the_lines_hold() -> None:
    def full(scores: float, kl: float, **more: Any) -> dict[str, Any]:
        base = {"words": 12.0, "finished": 0.75, "repetition": 0.0123, "held_out_accuracy": 0.7, "seed": 0}
        base |= {"chosen_logratio": -0.5, "beta": 0.1, "held_out_loss": 0.61, "seconds": 100.0}
        return base | line([[scores] * 2] * 12, kl) | more

    by_arm = {
        START: [full(0.0, 0.0)],
        "DPO": [full(0.5, 2.0)],
        "DPO, keep_best": [full(0.6, 1.5, kept_step=25, held_out_loss=0.55)],
        "DPO, strength": [full(0.4, 1.0, strength=0.6)],
    }
    from experiments.sentiment.comparison import Results

    results = Results({"here": by_arm}, 1e-5, [])
    found = compare(results)
    table = whole_table(by_arm, {arm: one for (_, arm), one in found.items()}).splitlines()
    assert table[3].startswith("| DPO | 0.500 | 100.0 | – | 2.00 |")
    # All twelve prompts by the same .1: the least p that twelve pairs allow, 2 / 2**12, twice for two tests.
    assert "+0.100 [+0.100, +0.100], p < .001 ▲" in table[4]
    assert "-0.100 [-0.100, -0.100], p < .001 ▼" in table[5]
    assert "| 12.0 | 1.2 | 75 | 70.0 | -0.50 | 0.1 |" in table[3]
    after = after_training_table(results).splitlines()
    assert after[3].startswith("| here | DPO, keep_best | 0.550 | 0.600 | 0.600 | 1.50 | 25 | – |")
    assert after[4].endswith("| 1.00 | – | 0.6 |")


def tiny_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Return a plan of a tiny model whose pairs are at hand: what is tested is what follows them."""
    model = save_model(tmp_path / "model")

    def ready(task: Task, folder: Path, seed: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "prompt_messages": [{"role": "user", "content": prompt}],
                "chosen": f"w{n}",
                "rejected": f"w{n + 30} w4",
            }
            for n, prompt in enumerate(world.asked_prompts(task))
        ]
        path = folder / "pairs.jsonl"
        path.write_text("".join(json.dumps({**row, "metadata": {}}) + "\n" for row in rows), encoding="utf-8")
        return path

    monkeypatch.setattr(world, "make_pairs", ready)
    monkeypatch.setattr(world, "MOST_TOKENS", 5)
    task = Task(
        model, "helpers_loops:early_words", num_asked=100, num_held_out=4, num_prompts=3, num_samples=2
    )
    arms = (Arm("DPO", dpo(0.1)), *(replace(arm, settings=dict(arm.settings)) for arm in AFTER_TRAINING))
    return Plan(((TINY, arms),), task, seeds=(0,), rates=(1e-3, 2e-3))


def test_runs_are_measured_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runs.SHARED, "dpo_training.batch_size", 2)
    monkeypatch.setitem(runs.SHARED, "dpo_training.eval_steps", 2)
    monkeypatch.setitem(runs.SHARED, "dpo_training.use_cpu", True)
    plan = tiny_plan(tmp_path, monkeypatch)
    for arm in plan.stages[0][1]:
        if "dpo_training.eval_steps" in arm.settings:
            monkeypatch.setitem(arm.settings, "dpo_training.eval_steps", 1)  # type: ignore[arg-type]
    path, done = tmp_path / "results.jsonl", []
    before = results_of(plan, Record(path))
    assert (before.lines, before.rate, len(before.missing)) == ({}, None, 2)
    trainings, train = [], Cell.train
    monkeypatch.setattr(Cell, "train", lambda self, *a: trainings.append(self.name) or train(self, *a))
    run(plan, Record(path), tmp_path / "work", done.append)
    assert len(done) == 6
    text = path.read_text(encoding="utf-8")
    monkeypatch.setattr(Cell, "compute", lambda self, folder: pytest.fail("made again"))
    run(plan, Record(path), tmp_path / "work", done.append)
    assert path.read_text(encoding="utf-8") == text
    results = results_of(plan, Record(path))
    assert not results.missing
    by_arm = results.lines["tiny"]
    start, trained = by_arm[START][0], by_arm["DPO"][0]
    assert start["kls"] == [0.0, 0.0, 0.0]
    assert np.asarray(trained["scores"]).shape == (3, 2)
    assert trained["scores"] != start["scores"] or divergence(trained) != 0
    # Two steps: the last evaluation is that of the last step; one that keeps its best can be no worse.
    assert trained["held_out_loss"] == pytest.approx(trained["held_out_losses"][-1], abs=1e-5)
    kept = by_arm["DPO, keep_best"][0]
    assert kept["held_out_loss"] == pytest.approx(min(kept["held_out_losses"]), abs=1e-4)
    assert kept["kept_step"] in (1, 2)
    weaker = by_arm["DPO, strength"][0]
    assert 0 <= weaker["strength"] <= 2
    assert weaker["held_out_loss"] <= trained["held_out_loss"] + 1e-4
    # Strengths are of plain DPO's own run; it was not trained again for them.
    assert trainings == ["DPO", "DPO", "DPO", "DPO, keep_best"]
