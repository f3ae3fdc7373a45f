"""The plan of the experiment: which cells there are, in which order they are made, and the learning rate for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.record import Record
from experiments.sentiment.arms import AFTER_TRAINING, ARMS, DPO_GRID, GIVEN, LEARNING_RATES, Arm
from experiments.sentiment.runs import START, Cell
from experiments.sentiment.world import FEW, FLIPPED, MANY, Condition, Task

TUNING_SEED = 1000
_GIVEN = next(arm for arm in DPO_GRID if arm.name == GIVEN)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the experiment.

    Attributes:
        stages: Conditions with arms, in the order in which they are made, each for all seeds.
        task: What is learnt.
        seeds: The same for every arm.
        rates: What the learning rate of all arms is chosen from, in the first stage's condition.
    """

    stages: tuple[tuple[Condition, tuple[Arm, ...]], ...]
    task: Task = field(default_factory=Task)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = LEARNING_RATES

    def tuning(self) -> list[Cell]:
        """Return the cells that the learning rate is chosen by: DPO at the given beta, on a seed of its own."""
        if len(self.rates) == 1:
            return []
        return [Cell(_GIVEN, self.task, self.stages[0][0], TUNING_SEED, rate) for rate in self.rates]

    def starts(self) -> list[Cell]:
        """Return the cells of the model before training, one a seed."""
        return [Cell(None, self.task, self.stages[0][0], seed, 0.0) for seed in self.seeds]

    def cells(self, rate: float) -> Iterator[Cell]:
        """Yield the cells of all trainings under comparison."""
        for condition, arms in self.stages:
            for seed in self.seeds:
                for arm in arms:
                    yield Cell(arm, self.task, condition, seed, rate)


def whole_plan() -> Plan:
    """Return the published plan: what held-out pairs decide first, then all arms, then all on flipped pairs."""
    first = (_GIVEN, *AFTER_TRAINING)
    constant = tuple(arm for arm in ARMS if arm.name == "DPO, constant rate")
    others = tuple(arm for arm in ARMS if arm not in first)
    # The arms that take plain DPO's run stand behind it, so that it is not made again for them.
    return Plan(((MANY, first), (FEW, (*first, *constant)), (MANY, others), (FLIPPED, (*first, *others))))


def quick_plan() -> Plan:
    """Return a version of minutes, to see it work: one seed, one rate, four arms, few pairs and prompts."""
    arms = tuple(arm for arm in ARMS if arm.name in (GIVEN, "DPO, beta 0.01", "DPO, strength", "risk, paper"))
    task = Task(num_asked=40, num_answers=4, num_held_out=3, num_prompts=16, num_samples=1)
    return Plan(
        ((Condition("32 pairs, one epoch", 32, 1), arms),), task, seeds=(0,), rates=LEARNING_RATES[1:2]
    )


class Results(NamedTuple):
    """What there is: arms with a line for every seed.

    Attributes:
        lines: By condition and arm, one line a seed; the model before training is an arm of each condition.
        rate: The learning rate of all; ``None`` before it is chosen.
        missing: Names of cells without a line.
    """

    lines: dict[str, dict[str, list[dict[str, Any]]]]
    rate: float | None
    missing: list[str]


def best_rate(lines: dict[float, dict[str, Any]]) -> float:
    """Return the learning rate whose line has the least held-out loss.

    Example:
        >>> best_rate({1e-5: {"held_out_loss": 0.6}, 2e-5: {"held_out_loss": 0.5}})
        2e-05
    """
    return min(lines, key=lambda rate: float(lines[rate]["held_out_loss"]))


def run(plan: Plan, record: Record, folder: Path, on_cell: Callable[[str], None]) -> None:
    """Compute what is missing.

    Args:
        plan: The experiment.
        record: What is there; gets the lines.
        folder: For pairs and the run under way.
        on_cell: Told the name of each cell when it is done.
    """

    def line(cell: Cell) -> dict[str, Any]:
        found = record.line(cell.key, lambda: cell.compute(folder))
        on_cell(cell.title)
        return found

    tuning = {cell.learning_rate: line(cell) for cell in plan.tuning()}
    rate = best_rate(tuning) if tuning else plan.rates[0]
    for cell in (*plan.starts(), *plan.cells(rate)):
        line(cell)


def results_of(plan: Plan, record: Record) -> Results:
    """Return what the record has of a plan, and say what it lacks."""
    tuning = {cell.learning_rate: record.lines.get(cell.key) for cell in plan.tuning()}
    missing = [cell.title for cell in plan.tuning() if cell.key not in record.lines]
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if missing:
        return Results(lines, None, missing)
    found = {one: line for one, line in tuning.items() if line is not None}
    rate = best_rate(found) if found else plan.rates[0]
    starts = [record.lines.get(cell.key) for cell in plan.starts()]
    missing += [cell.title for cell in plan.starts() if cell.key not in record.lines]
    for cell in plan.cells(rate):
        arms = lines.setdefault(cell.condition.name, {START: [line for line in starts if line is not None]})
        if cell.key in record.lines:
            arms.setdefault(cell.name, []).append(record.lines[cell.key])
        else:
            missing.append(cell.title)
    complete = {
        condition: {arm: found for arm, found in arms.items() if len(found) == len(plan.seeds)}
        for condition, arms in lines.items()
    }
    # In the order of the arms, whatever the stages were.
    order = [START, *(arm.name for arm in ARMS)]
    return Results(
        {
            condition: {arm: arms[arm] for arm in order if arm in arms}
            for condition, arms in complete.items()
            if START in arms and GIVEN in arms
        },
        rate,
        missing,
    )
