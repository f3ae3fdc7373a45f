"""One table of many results: a line for each model, a column for each number of each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.leaderboard.results import ModelResult, Task, Value

Unit = Literal["share", "number"]


class Metric(NamedTuple):
    """A kind of number.

    Attributes:
        header: What a column is called.
        unit: Shares are shown in per cent.
        digits: After the point.
        is_ranked: Whether more is better, so that the best can be marked.
        meaning: In a sentence, for below the table.
    """

    header: str
    unit: Unit
    digits: int
    is_ranked: bool
    meaning: str


METRICS: Final[dict[str, Metric]] = {
    "length_controlled": Metric(
        "length-controlled", "share", 1, True, "AlpacaEval 2's weighted win rate at equal length"
    ),
    "weighted": Metric(
        "weighted", "share", 1, True, "AlpacaEval 2's win rate: how surely the judge preferred the model"
    ),
    "win_rate": Metric("win rate", "share", 1, True, "verdicts won against the baseline, ties half"),
    "equal_length": Metric(
        "at equal length",
        "share",
        1,
        True,
        "the win rate that a logistic model gives to outputs of equal length",
    ),
    "arena": Metric("Arena-Hard", "share", 1, True, "Arena-Hard's score: Bradley-Terry against the baseline"),
    "arena_style": Metric(
        "style-controlled", "share", 1, True, "the same at equal length and equal use of Markdown"
    ),
    "grade": Metric(
        "grade", "number", 2, True, "mean grade of an answer by the judge, in MT-Bench from 1 to 10"
    ),
    "tokens": Metric("tokens", "number", 0, False, "mean length of an output in the model's own tokens"),
    "characters": Metric("characters", "number", 0, False, "mean length of an output"),
    "kl": Metric("KL", "number", 2, False, "estimated divergence from the reference, nats an output"),
    "invalid": Metric("invalid", "share", 1, False, "questions without a usable verdict"),
}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        metric: Name in `METRICS`.
        task: Whose; ``None`` where one task alone has this metric.
    """

    metric: str
    task: Task | None

    @property
    def header(self) -> str:
        """What it is called."""
        name = METRICS[self.metric].header
        return name if self.task is None else f"{name} ({self.task.label})"


@dataclass(frozen=True)
class Board:
    """The table.

    Attributes:
        tasks: What was evaluated, in the order in which evaluations were given.
        columns: In the order of `METRICS`.
        lines: Name to the numbers of its columns, the best first.
        ranked_by: The column that the lines are in the order of.
    """

    tasks: tuple[Task, ...]
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, tuple[Value | None, ...]], ...]
    ranked_by: Column

    def best(self, column: Column) -> float | None:
        """Return the highest number of a column in which more is better."""
        place = self.columns.index(column)
        values = [numbers[place].value for _, numbers in self.lines if numbers[place] is not None]  # type: ignore[union-attr]
        return max(values) if METRICS[column.metric].is_ranked and len(values) > 1 else None


def make_board(results: Sequence[ModelResult], *, judge: str | None = None, by: str | None = None) -> Board:
    """Lay out results.

    Models that were compared with different baselines stand in different columns; a model that two evaluations of one
    task have numbers of has a line for each, named with the evaluation.

    Args:
        results: Of any evaluations.
        judge: Leave out the others.
        by: Metric that the lines are ranked by; ``None``: the first of `METRICS` that is there.

    Raises:
        DataError: If there is nothing to show.
        ConfigError: If nobody has the metric, or there is no such judge.
    """
    judges = sorted({result.task.judge for result in results})
    if judge is not None and judge not in judges:
        raise ConfigError(f"no evaluation was judged by {judge!r}; judges: {', '.join(judges) or 'none'}")
    kept = [result for result in results if judge is None or result.task.judge == judge]
    if not kept:
        raise DataError("the evaluations hold no comparison with a baseline: set baseline, and judge")
    tasks = tuple(dict.fromkeys(result.task for result in kept))
    columns = [
        Column(metric, task if len(having) > 1 else None)
        for metric in METRICS
        for having in [[task for task in tasks if _have(kept, task, metric)]]
        for task in having
    ]
    times = Counter((result.task, result.model) for result in kept)
    lines: dict[str, dict[Column, Value]] = {}
    for result in kept:
        is_repeated = times[result.task, result.model] > 1
        name = f"{result.model} ({result.evaluation})" if is_repeated else result.model
        own = lines.setdefault(name, {})
        for metric, value in result.values.items():
            column = next(one for one in columns if one.metric == metric and one.task in (None, result.task))
            own[column] = value
    ranked_by = _ranked_by(columns, by)
    order = sorted(
        lines.items(),
        key=lambda line: (-line[1][ranked_by].value if ranked_by in line[1] else float("inf"), line[0]),
    )
    return Board(
        tasks,
        tuple(columns),
        tuple((name, tuple(own.get(column) for column in columns)) for name, own in order),
        ranked_by,
    )


def _have(results: Sequence[ModelResult], task: Task, metric: str) -> bool:
    return any(result.task == task and metric in result.values for result in results)


def _ranked_by(columns: Sequence[Column], by: str | None) -> Column:
    if by is None:
        return columns[0]
    found = [column for column in columns if column.metric == by]
    if not found:
        there = dict.fromkeys(column.metric for column in columns)
        raise ConfigError(f"no evaluation has the metric {by!r}; there are {', '.join(there)}")
    return found[0]
