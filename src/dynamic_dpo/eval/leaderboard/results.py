"""What the numbers of an evaluation say of each model, read from the file that its report has left."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError

# The formats of a report's numbers that this reads.
_KNOWN = (1, 2)
_FILES = ("summary.json", "results.json")


class Value(NamedTuple):
    """A number of one model.

    Attributes:
        value: The number; shares in [0, 1].
        low: Lower end of its interval; ``None`` without one.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Task:
    """What makes numbers of several evaluations comparable: the same prompts, baseline and judge.

    Attributes:
        prompts: Where the prompts come from.
        num_prompts: How many there are.
        baseline: Whom models were compared with; ``None`` where each got a grade of its own.
        judge: Who judged.
    """

    prompts: str
    num_prompts: int
    baseline: str | None
    judge: str

    @property
    def label(self) -> str:
        """Its prompts in short.

        Example:
            >>> Task("hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", 805, "gpt4", "gpt4").label
            'alpaca_eval'
        """
        return PurePosixPath(self.prompts.replace("\\", "/")).stem or self.prompts


@dataclass(frozen=True)
class ModelResult:
    """What one evaluation found of one model, by one judge.

    Attributes:
        evaluation: The evaluation's folder.
        task: What was evaluated.
        model: The model.
        values: Metric to number; what is not known is missing.
    """

    evaluation: str
    task: Task
    model: str
    values: Mapping[str, Value]


def read_results(place: str | Path) -> list[ModelResult]:
    """Read the numbers of an evaluation.

    Args:
        place: The evaluation's folder, or the file of its numbers.

    Raises:
        DataError: If there is no such file, it holds no numbers of a report, or none that a table could show.
    """
    path = Path(place)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise DataError(
                f"{place} holds none of {', '.join(_FILES)}: give the output.dir of an evaluation whose report is "
                "written, or the file that its output.summary names"
            )
        path = found[0]
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is neither a folder nor a file {place}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as the numbers of an evaluation: {error}") from None
    version = numbers.get("format_version") if isinstance(numbers, dict) else None
    if version not in _KNOWN or not numbers.keys() & {"pairs", "models"}:
        raise DataError(
            f"{path} holds no numbers of an evaluation that this version can read: format_version is {version!r}, "
            f"expected one of {', '.join(map(str, _KNOWN))}. Write the report again: evaluate --stage report"
        )
    try:
        read = _results if "pairs" in numbers else _grades
        results = list(read(numbers, path.parent.name if path.name in _FILES else path.stem))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from None
    if not results:
        raise DataError(
            f"{path} says nothing of a model against a baseline (baseline: {numbers.get('baseline')!r}): name one in "
            "the evaluation's file and write its report again, or leave this evaluation out"
        )
    return results


def _results(numbers: Mapping[str, Any], evaluation: str) -> Iterator[ModelResult]:
    prompts = numbers["provenance"].get("prompts") or {}
    source = str(prompts.get("source", numbers["title"]))
    models = {entry["name"]: entry for entry in numbers["models"]}
    divergences = {point["name"]: point["kl"] for point in numbers.get("frontier") or []}
    for judge in numbers["judges"]:
        task = Task(source, int(numbers["num_prompts"]), numbers["baseline"], judge["name"])
        found: dict[str, dict[str, Value]] = {}
        for metric, model, value in _values(numbers, judge["name"], task.baseline):
            if not math.isnan(value.value):
                found.setdefault(model, {})[metric] = value
        for model, values in found.items():
            entry = models.get(model)
            if entry is not None:
                if entry["mean_tokens"] is not None:
                    values["tokens"] = Value(entry["mean_tokens"])
                values["characters"] = Value(entry["mean_length"])
            if divergences.get(model) is not None:
                values["kl"] = Value(divergences[model])
            yield ModelResult(evaluation, task, model, values)


def _grades(numbers: Mapping[str, Any], evaluation: str) -> Iterator[ModelResult]:
    """Yield what an evaluation of graded conversations says of each model; a grade needs no baseline."""
    prompts = numbers["provenance"].get("prompts") or {}
    source = str(prompts.get("source", numbers["title"]))
    task = Task(source, int(numbers["num_prompts"]), None, numbers["judge"])
    for entry in numbers["models"]:
        overall = entry["overall"]
        asked = overall["num_grades"] + entry["num_invalid"]
        if not overall["num_grades"]:
            continue
        values = {"grade": _value(overall["mean"], overall["interval"])}
        values["invalid"] = Value(entry["num_invalid"] / asked)
        yield ModelResult(evaluation, task, entry["model"], values)


def _values(numbers: Mapping[str, Any], judge: str, baseline: str | None) -> Iterator[tuple[str, str, Value]]:
    """Yield metric, model and value of all that one judge has said against the baseline."""
    for pair in numbers["pairs"]:
        overall = pair["overall"]
        if overall["judge"] != judge or overall["baseline"] != baseline:
            continue
        model, counts = overall["model"], overall["counts"]
        yield "win_rate", model, _value(overall["rate"], overall["interval"])
        asked = sum(counts.values())
        if asked:
            yield "invalid", model, Value(counts["invalid"] / asked)
        if pair["controlled"] is not None:
            yield "equal_length", model, _value(pair["controlled"]["rate"], pair["controlled"]["interval"])
    for result in numbers.get("alpaca") or []:
        if result["judge"] != judge or result["baseline"] != baseline:
            continue
        for row in result["rows"]:
            # Their standard errors leave out the regression's own uncertainty: no interval is made of them.
            yield "length_controlled", row["model"], _value(row["length_controlled"], None)
            yield "weighted", row["model"], _value(row["win_rate"], None)
    for result in numbers.get("arena") or []:
        table = result["overall"]
        if table["judge"] != judge or table["baseline"] != baseline:
            continue
        for score in table["scores"]:
            if score["model"] == baseline:
                continue
            yield "arena", score["model"], _value(score["score"], score["interval"])
            if score["controlled"] is not None:
                yield "arena_style", score["model"], _value(score["controlled"], score["controlled_interval"])


def _value(value: float | None, interval: Mapping[str, float | None] | None) -> Value:
    if value is None:
        return Value(math.nan)
    if interval is None or interval["low"] is None or interval["high"] is None:
        return Value(value)
    return Value(value, interval["low"], interval["high"])
