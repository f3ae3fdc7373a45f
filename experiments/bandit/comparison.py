"""The plan of the experiment and its statistics: cells, DPO's best beta, and paired tests with Holm's correction.

Where results come from, trained now or read again, is the store's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from experiments.bandit.arms import ARMS, BEST, BETA_GRID, CONDITIONS, CONTROL, GIVEN, Arm, Condition, dpo_at
from experiments.bandit.store import Cell, Store
from experiments.bandit.training import TrainingConfig
from experiments.bandit.world import WorldConfig

from dynamic_dpo.eval.statistics.paired_tests import holm


@dataclass(frozen=True)
class Plan:
    """Everything that decides the experiment.

    Attributes:
        arms: What is compared; DPO at its best beta is added.
        conditions: The data they meet.
        num_seeds: Seeds 0, 1, …: worlds, pairs, labels and orders, the same for every arm.
        num_tuning_seeds: Seeds 1000, 1001, …, which DPO's best beta is chosen on.
        beta_grid: What it is chosen from, in units of beta_0.
        world: The law of worlds.
        training: How long and how fast.
    """

    arms: tuple[Arm, ...] = ARMS
    conditions: tuple[Condition, ...] = CONDITIONS
    num_seeds: int = 20
    num_tuning_seeds: int = 10
    beta_grid: tuple[float, ...] = BETA_GRID
    world: WorldConfig = field(default_factory=WorldConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def num_cells(self) -> int:
        """Lines that a complete experiment has."""
        return len(self.conditions) * (len(self.arms) + 1 + len(self.beta_grid))

    def cell(self, arm: Arm, condition: Condition) -> Cell:
        """Return the cell of an arm under comparison."""
        return Cell(arm, condition, tuple(range(self.num_seeds)), self.world, self.training)

    def tuning_cell(self, factor: float, condition: Condition) -> Cell:
        """Return the cell of DPO at a beta of the grid, on seeds of its own."""
        seeds = tuple(range(1000, 1000 + self.num_tuning_seeds))
        arm = dpo_at(factor * self.world.beta_0, f"DPO, tuning {factor:g}")
        return Cell(arm, condition, seeds, self.world, self.training)


def short_memory_plan(plan: Plan) -> Plan:
    """Return the plan of a second look: the arms whose beta moves, on the fewest pairs, with an Adam that forgets.

    Beta is also a factor of the gradient. Adam divides by the gradient's size, but by what it was over about
    1 / (1 - beta2) steps: with a long memory a falling beta is a falling learning rate as well, with a short one not.
    """
    moving = ("risk", "schedule", "epsilon_dpo", "beta_dpo")
    return replace(
        plan,
        arms=(plan.arms[0], *(arm for arm in plan.arms if arm.method in moving)),
        conditions=(min(plan.conditions, key=lambda condition: condition.num_pairs),),
        training=replace(plan.training, adam_beta2=0.9),
    )


class Results(NamedTuple):
    """A finished experiment.

    Attributes:
        plan: What was run.
        lines: The arms' lines, by condition and arm.
        tuning: DPO's lines on the tuning seeds, by condition and beta.
        best_betas: The beta of `BEST`, by condition.
    """

    plan: Plan
    lines: dict[str, dict[str, dict[str, Any]]]
    tuning: dict[str, dict[float, dict[str, Any]]]
    best_betas: dict[str, float]


class Difference(NamedTuple):
    """An arm against another over the same seeds.

    Attributes:
        mean: Mean difference of regrets; below 0 the arm is better.
        num_better: Seeds on which it is better.
        p_value: Wilcoxon's signed-rank test, two-sided, with Holm's correction over all tests of the experiment.
    """

    mean: float
    num_better: int
    p_value: float


def run(plan: Plan, store: Store, on_cell: Callable[[str], None] = lambda name: None) -> Results:
    """Compute what is missing and return the results.

    Args:
        plan: The experiment.
        store: Where results are kept.
        on_cell: Told the name of each cell when it is done.
    """
    results = Results(plan, {}, {}, {})
    for condition in plan.conditions:
        name = condition.name
        tuning = results.tuning[name] = {}
        for factor in plan.beta_grid:
            tuning[factor * plan.world.beta_0] = store.result(plan.tuning_cell(factor, condition))
            on_cell(f"{name}: tuning")
        best = results.best_betas[name] = best_beta(tuning)
        lines = results.lines[name] = {}
        for arm in (plan.arms[0], dpo_at(best), *plan.arms[1:]):
            lines[arm.name] = store.result(plan.cell(arm, condition))
            on_cell(f"{name}: {arm.name}")
    return results


def best_beta(tuning: Mapping[float, Mapping[str, Any]]) -> float:
    """Return the beta of the line with the least mean regret."""
    return min(tuning, key=lambda beta: float(np.mean(tuning[beta]["regret"])))


def finished(plan: Plan, store: Store) -> Plan:
    """Return the plan with those conditions alone that have all of their lines."""

    def is_finished(condition: Condition) -> bool:
        cells = {factor: plan.tuning_cell(factor, condition) for factor in plan.beta_grid}
        if any(cell.key not in store.lines for cell in cells.values()):
            return False
        best = best_beta({f * plan.world.beta_0: store.lines[cell.key] for f, cell in cells.items()})
        return all(plan.cell(arm, condition).key in store.lines for arm in (*plan.arms, dpo_at(best)))

    return replace(plan, conditions=tuple(filter(is_finished, plan.conditions)))


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 where all differences are 0.

    Example:
        >>> signed_rank_p([-1.0, -2.0, -3.0, -4.0, -5.0])  # 2 / 2**5
        0.0625
    """
    from scipy.stats import wilcoxon

    uneven = [difference for difference in differences if difference != 0.0]
    return float(wilcoxon(uneven).pvalue) if uneven else 1.0


def compare(results: Results) -> dict[tuple[str, str, str], Difference]:
    """Compare every arm with each of the three yardsticks, condition by condition.

    Returns:
        Differences by condition, arm and yardstick. The correction is over all of them: with 20 seeds the least
        possible p-value is 2 / 2**20, which survives it.
    """
    paired: dict[tuple[str, str, str], np.ndarray] = {}
    for condition, by_arm in results.lines.items():
        for arm, line in by_arm.items():
            for other in (GIVEN, BEST, CONTROL):
                if other in by_arm and other != arm:
                    paired[condition, arm, other] = np.subtract(line["regret"], by_arm[other]["regret"])
    raw: Mapping[str, float] = {"\t".join(key): signed_rank_p(list(d)) for key, d in paired.items()}
    corrected = holm(raw)
    return {
        key: Difference(float(d.mean()), int((d < 0).sum()), corrected["\t".join(key)])
        for key, d in paired.items()
    }
