"""The bandit experiment: exact measures against brute force, training against formulas, a record that resumes."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamic_dpo.methods import METHODS, Control, Needs, PairForward, PreferenceMethod
from places import ROOT

# The experiments are no part of the installed package.
sys.path.insert(0, str(ROOT))

from experiments.bandit.arms import ARMS, BEST, GIVEN, MARGIN_BUDGET, Arm, Condition, dpo_at
from experiments.bandit.comparison import (
    Plan,
    Results,
    compare,
    finished,
    run,
    short_memory_plan,
    signed_rank_p,
)
from experiments.bandit.page import (
    full_tables,
    setting_lines,
    stopped_early,
    summary_table,
    write_page,
)
from experiments.bandit.store import Store
from experiments.bandit.training import TrainingConfig, batch_order, train
from experiments.bandit.world import (
    Pairs,
    World,
    WorldConfig,
    clean_agreement,
    draw_pairs,
    draw_world,
    flip_rates,
    log_softmax,
    measure,
    optimal_logps,
    pair_law,
    regret_and_kl,
)
from experiments.pages import replace_block

SMALL = WorldConfig(num_contexts=4, num_actions=5)
SHORT = TrainingConfig(num_updates=40, batch_size=16, num_points=4)


def two_actions(*, beta_0: float = 0.5) -> World:
    """One context, reference (3/4, 1/4), rewards (0, 1)."""
    return World(np.log([[0.75, 0.25]]), np.array([[0.0, 1.0]]), beta_0)


def trained(
    arm: Arm, seeds: tuple[int, ...] = (0, 1), *, world: WorldConfig = SMALL, training=SHORT, pairs=64
):
    worlds = [draw_world(world, seed) for seed in seeds]
    data = [
        draw_pairs(one, pairs, np.zeros(len(one.rewards)), s) for one, s in zip(worlds, seeds, strict=True)
    ]
    methods = [arm.build(beta_0=world.beta_0, batch_size=training.batch_size, seed=s) for s in seeds]
    return train(methods, worlds, data, seeds, training)


# ---- exact measures ----


def test_regret_is_the_formula_worked_by_hand() -> None:
    world = two_actions()
    log_z = math.log(0.75 * math.exp(0.0) + 0.25 * math.exp(2.0))  # r / beta_0 = 0, 2
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    regret, measured_kl = regret_and_kl(world, np.log([[0.5, 0.5]]))
    assert measured_kl == pytest.approx(kl, abs=1e-15)
    assert regret == pytest.approx(0.5 * log_z - (0.5 * 1.0 - 0.5 * kl), abs=1e-15)
    # The reference earns 1/4 at no KL: beta_0 log Z - 1/4.
    assert regret_and_kl(world, world.reference_logps)[0] == pytest.approx(0.5 * log_z - 0.25, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_regret_is_beta_0_times_the_divergence_from_the_optimum(seed: int) -> None:
    world = draw_world(SMALL, seed)
    policy = log_softmax(np.random.default_rng(seed).standard_normal(world.rewards.shape))
    divergence = (np.exp(policy) * (policy - optimal_logps(world))).sum(1).mean()
    assert regret_and_kl(world, policy)[0] == pytest.approx(world.beta_0 * divergence, abs=1e-12)


def test_no_policy_of_a_fine_grid_does_better_than_the_optimum() -> None:
    world = World(np.log([[0.5, 0.3, 0.2]]), np.array([[0.3, -0.2, 1.0]]), 0.4)
    grid = [
        (i / 200, j / 200, (200 - i - j) / 200)
        for i, j in itertools.product(range(1, 199), repeat=2)
        if i + j < 200
    ]
    regrets = [regret_and_kl(world, np.log([p]))[0] for p in grid]
    assert 0 <= min(regrets) < 4e-4
    assert grid[int(np.argmin(regrets))] == pytest.approx(np.exp(optimal_logps(world))[0], abs=0.01)


def test_clean_accuracy_is_the_sum_over_all_pairs_and_labels() -> None:
    world = draw_world(WorldConfig(num_contexts=2, num_actions=3), 0)
    scores = np.array([[0.0, 1.0, 0.0], [2.0, -1.0, 0.5]])
    total = 0.0
    for x in range(2):
        rho = np.exp(world.reference_logps[x])
        both = 1.0 - (rho**2).sum()  # the two draws differ
        for a, b in itertools.permutations(range(3), 2):
            prefers_a = 1.0 / (1.0 + math.exp(world.rewards[x, b] - world.rewards[x, a]))
            ahead = np.sign(scores[x, a] - scores[x, b])
            agrees = {1.0: prefers_a, -1.0: 1.0 - prefers_a, 0.0: 0.5}[float(ahead)]
            total += rho[a] * rho[b] / both * agrees / 2
    assert clean_agreement(world, scores) == pytest.approx(total, abs=1e-12)


def test_nothing_agrees_with_clean_labels_more_than_the_optimum_does() -> None:
    world = draw_world(SMALL, 3)
    best = measure(world, optimal_logps(world)).accuracy
    for seed in range(20):
        other = log_softmax(np.random.default_rng(seed).standard_normal(world.rewards.shape))
        assert measure(world, other).accuracy <= best + 1e-12
    assert measure(world, world.reference_logps).accuracy == pytest.approx(0.5, abs=1e-12)


# ---- data ----


def test_pairs_follow_their_law_and_labels_the_rewards() -> None:
    world = draw_world(WorldConfig(num_contexts=2, num_actions=3), 1)
    n = 60_000
    pairs = draw_pairs(world, n, np.zeros(2), 5)
    assert (pairs.chosen != pairs.rejected).all()
    seen = np.zeros((2, 3, 3))
    np.add.at(seen, (pairs.contexts, pairs.chosen, pairs.rejected), 1.0)
    ahead = world.rewards[:, :, None] - world.rewards[:, None, :]
    law = pair_law(world)
    expected = (law + law.transpose(0, 2, 1)) / (1.0 + np.exp(-ahead)) / 2
    # Five standard deviations of a share of 60,000.
    assert np.abs(seen / n - expected).max() < 5 * 0.5 / math.sqrt(n)


def test_flips_have_their_rate_and_those_at_a_higher_rate_contain_those_at_a_lower() -> None:
    world = draw_world(WorldConfig(), 0)
    clean, some, many = (
        draw_pairs(world, 8192, flip_rates(WorldConfig(), rate, heterogeneous=False), 0)
        for rate in (0.0, 0.2, 0.4)
    )
    assert not clean.flipped.any()
    assert many.flipped.mean() == pytest.approx(0.4, abs=0.02)
    assert (some.flipped <= many.flipped).all()
    assert (some.chosen == np.where(some.flipped, clean.rejected, clean.chosen)).all()


def test_heterogeneous_flips_fall_into_half_of_the_contexts_at_the_same_mean_rate() -> None:
    rates = flip_rates(WorldConfig(num_contexts=4), 0.2, heterogeneous=True)
    assert rates.tolist() == [0.0, 0.0, 0.4, 0.4]
    assert rates.mean() == flip_rates(WorldConfig(num_contexts=4), 0.2, heterogeneous=False).mean()


def test_fewer_pairs_are_the_first_of_more() -> None:
    world = draw_world(SMALL, 0)
    few, many = (draw_pairs(world, n, np.full(4, 0.2), 3) for n in (50, 200))
    for short, long in zip(few, many, strict=True):
        assert (short == long[:50]).all()


def test_the_margin_budget_is_the_optimums_own_level() -> None:
    levels = []
    for seed in range(20):
        world = draw_world(WorldConfig(), seed)
        ahead = (world.rewards[:, :, None] - world.rewards[:, None, :]).ravel()
        # Chosen first: each ordered pair is met with twice its chance times that of the label.
        weight = 2 * pair_law(world).ravel() / (1 + np.exp(-ahead)) / len(world.rewards)
        order = np.argsort(ahead)
        levels.append(ahead[order][np.searchsorted(weight[order].cumsum(), 0.9)] / world.beta_0)
    assert np.mean(levels) == pytest.approx(MARGIN_BUDGET, abs=0.1)


# ---- training ----


def test_every_epoch_meets_every_pair_once() -> None:
    order = batch_order(32, TrainingConfig(num_updates=4, batch_size=16), seed=0)
    for epoch in (order[:2], order[2:]):
        assert sorted(epoch.ravel()) == list(range(32))
    assert (order[:2] != order[2:]).any()


def test_a_step_of_dpo_is_the_gradient_worked_by_hand() -> None:
    world, pair = two_actions(), Pairs(*(np.array([value]) for value in (0, 1, 0, False)))
    method = ARMS[0].build(beta_0=0.5, batch_size=1, seed=0)
    (result,) = train([method], [world], [pair], [0], TrainingConfig(2, 1, 0.1, 0.999, 1))

    logits, moment, square = np.log([0.75, 0.25]), np.zeros(2), np.zeros(2)
    for step in (1, 2):
        margin = (logits[1] - logits[0]) - math.log(0.25 / 0.75)
        gradient = -0.5 / (1.0 + math.exp(0.5 * margin)) * np.array([-1.0, 1.0])
        moment, square = 0.9 * moment + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        unbiased = moment / (1 - 0.9**step), square / (1 - 0.999**step)
        logits = logits - 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    assert result.policy_logps == pytest.approx(log_softmax(logits[None]), abs=1e-12)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_seeds_trained_side_by_side_are_each_as_if_alone(arm: Arm) -> None:
    together = trained(arm, (0, 1, 2))
    for seed, result in enumerate(together):
        (alone,) = trained(arm, (seed,))
        assert result.policy_logps == pytest.approx(alone.policy_logps, abs=1e-9)
        assert result.trace.betas == pytest.approx(alone.trace.betas, rel=1e-9)
    assert np.abs(together[0].policy_logps - together[1].policy_logps).max() > 0.1


def test_every_method_of_the_table_learns() -> None:
    compared = {arm.method for arm in ARMS}
    # Further losses came after the measurement; they learn here all the same.
    others = [Arm(name, name) for name in METHODS if name not in compared]
    # With its own tau DiscoPOP turns pairs around that start at margin 0, as all of them do here.
    settings = {"discopop": {"tau": 1.0}}
    others = [Arm(arm.name, arm.method, settings.get(arm.name, {})) for arm in others]
    assert {arm.method for arm in ARMS} >= {"dpo", "risk", "schedule", "beta_dpo", "epsilon_dpo", "alpha_dpo"}
    start = measure(draw_world(SMALL, 0), draw_world(SMALL, 0).reference_logps)
    for arm in (*ARMS, *others):
        (result,) = trained(arm, (0,), training=replace(SHORT, num_updates=80), pairs=512)
        assert result.measures.accuracy > start.accuracy + 0.05, arm.name
        assert math.isfinite(result.measures.regret), arm.name


def test_controllers_move_beta_after_their_warm_up_and_each_seed_has_its_own() -> None:
    arm = Arm("quick", "risk", risk={"mode": "paper", "warmup_steps": 5, "alpha": 0.05})
    first, second = (result.trace.betas for result in trained(arm))
    assert len({*first, *second}) == 8
    fixed = trained(ARMS[0])[0].trace
    assert (fixed.betas, fixed.updates) == ([0.5] * 4, [10, 20, 30, 40])


def test_a_method_gets_single_tokens_only_if_it_asks_for_them() -> None:
    seen: list[PairForward] = []

    class Asks(PreferenceMethod):
        name = "asks"
        needs = Needs(reference=False, token_logps=True)
        beta = 1.0

        def losses(self, forward: PairForward, control: Control) -> torch.Tensor:
            seen.append(forward)
            return -forward.margins

    world = draw_world(SMALL, 0)
    train([Asks()], [world], [draw_pairs(world, 8, np.zeros(4), 0)], [0], TrainingConfig(1, 4, 0.1, 0.999, 1))
    assert seen[0].token_logps is not None
    assert seen[0].token_owners is not None
    assert seen[0].token_owners.tolist() == list(range(8))
    assert seen[0].token_logps[1::2].tolist() == seen[0].policy_rejected_logps.tolist()
    assert not seen[0].ref_chosen_logps.any()


def test_the_regret_of_dpo_falls_as_pairs_grow() -> None:
    regrets = [
        np.mean([r.measures.regret for r in trained(ARMS[0], (0, 1, 2), training=long, pairs=pairs)])
        for long in [TrainingConfig(num_updates=300, batch_size=64, learning_rate=0.03)]
        for pairs in (64, 512, 8192)
    ]
    assert regrets[0] > 2 * regrets[1] > 4 * regrets[2]
    assert regrets[2] < 0.05


# ---- plan, record and statistics ----


def small_plan() -> Plan:
    arms = tuple(arm for arm in ARMS if arm.name in (GIVEN, "schedule", "hinge"))
    conditions = (Condition(128), Condition(128, noise=0.4))
    return Plan(arms, conditions, 5, 2, (0.5, 1.0), SMALL, SHORT)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(small_plan(), Store(tmp_path_factory.mktemp("bandit") / "results.jsonl"))


def test_a_plan_counts_its_cells(tmp_path: Path) -> None:
    done: list[str] = []
    run(small_plan(), Store(tmp_path / "r.jsonl"), done.append)
    assert len(done) == small_plan().num_cells == 2 * (3 + 1 + 2)


def test_an_interrupted_experiment_goes_on_and_ends_with_the_same_results(
    results: Results, tmp_path: Path
) -> None:
    path = tmp_path / "deeper" / "results.jsonl"
    run(small_plan(), Store(path))
    whole = path.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:50], encoding="utf-8")  # cut off in the fourth line
    again = run(small_plan(), Store(path))
    assert again == results
    kept = path.read_text(encoding="utf-8").splitlines()
    assert kept[:3] + kept[4:] == whole.splitlines()


def test_a_finished_cell_is_read_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, path = small_plan().cell(ARMS[0], Condition(128)), tmp_path / "r.jsonl"
    first = Store(path).result(cell)
    monkeypatch.setattr("experiments.bandit.store.train", None)
    assert Store(path).result(cell) == first
    with pytest.raises(TypeError):
        Store(path).result(replace(cell, seeds=(7,)))


def test_the_key_of_a_cell_changes_with_everything_that_decides_it() -> None:
    cell = small_plan().cell(ARMS[0], Condition(128))
    others = [
        replace(cell, seeds=(0,)),
        replace(cell, arm=dpo_at(0.4, GIVEN)),
        replace(cell, condition=Condition(128, noise=0.1)),
        replace(cell, world=replace(cell.world, beta_0=0.4)),
        replace(cell, training=replace(cell.training, learning_rate=0.1)),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 6
    assert replace(cell).key == cell.key


def test_the_best_beta_is_chosen_on_seeds_that_are_not_compared(results: Results) -> None:
    plan = results.plan
    tuning, compared = (
        set(c.seeds) for c in (plan.tuning_cell(1.0, Condition()), plan.cell(ARMS[0], Condition()))
    )
    assert not tuning & compared
    for condition in plan.conditions:
        by_beta = {
            factor * 0.5: np.mean(plan.tuning_cell(factor, condition).compute()["regret"])
            for factor in plan.beta_grid
        }
        best = results.best_betas[condition.name]
        assert by_beta[best] == min(by_beta.values())
        assert results.lines[condition.name][BEST]["arm"]["settings"] == {"beta": best}


def test_the_second_look_is_at_arms_whose_beta_moves_with_an_adam_that_forgets() -> None:
    look = short_memory_plan(Plan())
    assert [arm.name for arm in look.arms] == [
        "DPO", "schedule", "risk, paper", "risk, exact", "risk, rm", "risk, target", "β-DPO", "ε-DPO"
    ]  # fmt: skip
    assert look.conditions == (Condition(2048),)
    assert (look.training.adam_beta2, Plan().training.adam_beta2) == (0.9, 0.999)


def test_signed_rank_p_values_are_exact() -> None:
    assert signed_rank_p([-1.0] + [float(i) for i in range(2, 21)]) == pytest.approx(
        4 / 2**20
    )  # rank sums 0, 1
    assert signed_rank_p([0.0, 0.0]) == 1.0


def test_differences_are_paired_by_seed_and_corrected_together(results: Results) -> None:
    differences = compare(results)
    # hinge and best against three or two, DPO and schedule against two: 3 + 2 + 2 + 2, on two conditions
    assert len(differences) == 18
    by_arm = results.lines["128 pairs, no flips"]
    found = differences["128 pairs, no flips", "hinge", GIVEN]
    paired = [a - b for a, b in zip(by_arm["hinge"]["regret"], by_arm[GIVEN]["regret"], strict=True)]
    assert found.mean == pytest.approx(np.mean(paired))
    assert found.num_better == sum(d < 0 for d in paired)
    assert found.p_value >= signed_rank_p(paired)


def test_tables_show_every_arm_under_every_condition(results: Results) -> None:
    differences = compare(results)
    summary = summary_table(results, differences).splitlines()
    assert summary[0] == "| Mean regret | 128 pairs, no flips | 128 pairs, 40 % flips |"
    assert [row.split(" | ")[0] for row in summary[2:]] == [
        "| DPO", "| DPO, best beta", "| schedule", "| hinge",
        "| *DPO, stopped early*", "| *at step*", "| *DPO's best beta*",
    ]  # fmt: skip
    full = full_tables(results, differences)
    assert full.count("### ") == 2
    assert full.count("| hinge |") == 2
    regret = np.mean(results.lines["128 pairs, 40 % flips"]["hinge"]["regret"])
    assert f"| hinge | {regret:.4f} ± " in full


def test_the_step_to_stop_at_is_chosen_on_the_tuning_seeds(results: Results) -> None:
    name = "128 pairs, 40 % flips"
    tuned, compared = results.tuning[name][0.5]["mean_regret"], results.lines[name][GIVEN]["mean_regret"]
    point = tuned.index(min(tuned))
    assert stopped_early(results, name) == ((10, 20, 30, 40)[point], compared[point])
    without = results._replace(tuning={name: {}})
    assert stopped_early(without, name) == (40, compared[-1])


def test_the_page_is_written_between_its_markers(results: Results, tmp_path: Path) -> None:
    frame = "Before.\n" + "".join(
        f"<!-- bandit:{n} -->old<!-- bandit:end -->\n" for n in ("setting", "summary", "full", "memory")
    )
    (tmp_path / "results.md").write_text(frame, encoding="utf-8")
    written = write_page(results, results, tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text.startswith("Before.\n")
    assert "old" not in text
    assert "4 contexts, 5 actions, beta_0 = 0.5" in text
    pictures = [path for path in written if path.suffix == ".png"]
    assert len(pictures) == 2
    assert all(path.read_bytes()[1:4] == b"PNG" for path in pictures)
    with pytest.raises(ValueError, match="bandit:other"):
        replace_block(text, "bandit:other", "x")


def test_the_command_runs_resumes_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.bandit import __main__ as command

    monkeypatch.setattr(command, "quick_plan", small_plan)
    path = tmp_path / "r.jsonl"
    for _ in range(2):
        command.main(["--quick", "--out", str(path)])
        assert "| hinge |" in capsys.readouterr().out
    command.main(["--quick", "--out", str(path), "--train-nothing"])
    assert "| hinge |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no condition is finished"):
        command.main(["--quick", "--out", str(tmp_path / "other.jsonl"), "--train-nothing"])
    cells = small_plan().num_cells + short_memory_plan(small_plan()).num_cells
    assert len(path.read_text(encoding="utf-8").splitlines()) == cells


def test_conditions_that_lack_a_line_are_not_finished(tmp_path: Path) -> None:
    plan, store = small_plan(), Store(tmp_path / "r.jsonl")
    assert finished(plan, store).conditions == ()
    results = run(plan, store)
    assert finished(plan, store) == plan
    last = plan.conditions[-1]
    best = plan.cell(dpo_at(results.best_betas[last.name]), last)
    for cell in (best, plan.tuning_cell(0.5, last), plan.cell(plan.arms[-1], last)):
        line = store.lines.pop(cell.key)
        assert finished(plan, store).conditions == plan.conditions[:1]
        store.lines[cell.key] = line


def test_the_published_page_shows_the_published_results(monkeypatch: pytest.MonkeyPatch) -> None:
    published = Store(ROOT / "experiments" / "bandit" / "results.jsonl")
    # A cell that is missing would have to be trained.
    monkeypatch.setattr("experiments.bandit.store.train", None)
    results = run(finished(Plan(), published), published)
    names = set(results.lines)
    assert names >= {Condition(n).name for n in (2048, 8192, 32768)} | {Condition(noise=0.4).name}
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    second_look = run(short_memory_plan(Plan()), published)
    for block in (
        setting_lines(results),
        summary_table(results, compare(results)),
        summary_table(second_look, compare(second_look)),
    ):
        assert block in page
    assert full_tables(results, compare(results)) in page
    dpo = [np.mean(results.lines[Condition(n).name][GIVEN]["regret"]) for n in (2048, 8192, 32768)]
    assert dpo[0] > 1.5 * dpo[1] > 2.25 * dpo[2]
