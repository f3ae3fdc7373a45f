"""What each training of a sweep has come to, read from what it has left."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dynamic_dpo.errors import DataError
from dynamic_dpo.runs.files import SUMMARY, TRAINER_STATE

Criterion = Literal["loss", "accuracy", "win_rate"]
CRITERIA: Final[dict[Criterion, str]] = {
    "loss": "lowest held-out loss",
    "accuracy": "highest held-out accuracy",
    "win_rate": "highest win rate",
}


@dataclass(frozen=True)
class RunFigures:
    """The figures of one training.

    Attributes:
        name: Name of the training.
        overrides: ``key=value`` of what is its own.
        loss: Mean loss of the held-out pairs under the weights that it ended with: at its last evaluation, or the one
            that `keep_best` kept.
        accuracy: Share of them whose chosen answer has the higher reward, from 0 to 1.
        margin: Mean difference of their log-ratios, in nats.
        drift: How much less likely than under the reference their answers have become, in nats an answer, the mean
            over both answers; an estimate of the divergence of the reference from the policy where the reference has
            written them. ``None`` where beta or the margin is 0, by which it is found.
        best_loss: The lowest loss of any of its evaluations.
        best_step: The step of that evaluation.
        step: The step of the weights that it ended with.
        beta_final: Beta at its end; ``None`` where the method has none.
        seconds: Seconds inside optimizer steps.
        pairs_per_second: Speed of these.
        reference_computed: Pairs that it scored with the reference.
        win_rate: Of its model against the baseline, from 0 to 1; ``None`` without an evaluation.
        win_rate_low: Lower end of that one's interval.
        win_rate_high: Upper end.
        kl: Estimate of the divergence of its model from the reference, in nats an output; ``None`` where it is not
            measured.
    """

    name: str
    overrides: tuple[str, ...]
    loss: float
    accuracy: float
    margin: float
    drift: float | None
    best_loss: float
    best_step: int
    step: int
    beta_final: float | None
    seconds: float
    pairs_per_second: float | None
    reference_computed: int
    win_rate: float | None = None
    win_rate_low: float | None = None
    win_rate_high: float | None = None
    kl: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return asdict(self)


def is_done(folder: Path) -> bool:
    """Return whether a training has come to its end."""
    return (folder / SUMMARY).is_file() and (folder / TRAINER_STATE).is_file()


def figures_of(name: str, overrides: tuple[str, ...], folder: Path) -> RunFigures:
    """Return the figures of a training that is done.

    Raises:
        DataError: If it has left no evaluation.
    """
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    if not evaluations:
        raise DataError(
            f"{folder} holds a training without an evaluation: sweeps compare held-out pairs; set dataset.val_ratio "
            "or dataset.eval_dataset_name, and remove the folder"
        )
    kept = summary.get("keep_best")
    # The evaluation of the weights that the training ended with.
    last = next(
        (entry for entry in evaluations if kept is not None and entry["step"] == kept["step"]),
        evaluations[-1],
    )
    best = min(evaluations, key=lambda entry: _number(entry["eval_loss"]))
    margin, reward = last["eval_margins/mean"], last["eval_rewards/margins"]
    beta = reward / margin if margin else 0.0
    sum_of_rewards = last["eval_rewards/chosen"] + last["eval_rewards/rejected"]
    return RunFigures(
        name=name,
        overrides=overrides,
        loss=last["eval_loss"],
        accuracy=last["eval_rewards/accuracies"],
        margin=margin,
        drift=-sum_of_rewards / 2 / beta if beta else None,
        best_loss=best["eval_loss"],
        best_step=best["step"],
        step=last["step"],
        beta_final=summary["beta_final"],
        seconds=summary["training_seconds"],
        pairs_per_second=summary["pairs_per_second"],
        reference_computed=summary["reference_computed"],
    )


def with_evaluation(figures: RunFigures, evaluation: Mapping[str, Any]) -> RunFigures:
    """Return figures with those of an evaluation's ``summary.json``: win rate and divergence."""
    values = asdict(figures)
    for pair in evaluation["pairs"]:
        overall = pair["overall"]
        if overall["model"] == figures.name:
            values["win_rate"] = overall["rate"]
            values["win_rate_low"] = overall["interval"]["low"]
            values["win_rate_high"] = overall["interval"]["high"]
    kl = {point["name"]: point["kl"] for point in evaluation["frontier"]}
    values["kl"] = kl.get(figures.name)
    return RunFigures(**values)


def ranked(runs: Iterable[RunFigures], criterion: Criterion) -> list[RunFigures]:
    """Return trainings with the best first; those without the number, or with one that is none, come last."""

    def key(figures: RunFigures) -> tuple[bool, float]:
        value = getattr(figures, criterion)
        is_none = value is None or math.isnan(value)
        return is_none, 0.0 if is_none else value if criterion == "loss" else -value

    return sorted(runs, key=key)


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
