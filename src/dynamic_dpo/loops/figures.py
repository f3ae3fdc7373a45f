"""What a round has come to, read from what its stages have left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.loops.plan import LoopPlan
from dynamic_dpo.runs.files import SUMMARY


@dataclass(frozen=True)
class RoundFigures:
    """The figures of one round.

    Attributes:
        round: The round, from 1.
        pairs: Pairs of its rollout.
        trained_pairs: Pairs that it trained on, those of earlier rounds among them.
        score: Mean score of the answers that its rollout sampled, by the model it began with; ``None`` where nothing
            was scored.
        gap: Mean difference of the scores of a pair; ``None`` where nothing was scored.
        win_rate: Of the model it trained against the one it began with, from 0 to 1.
        win_rate_interval: Its interval.
        kl: Estimate of the divergence of the model it trained from the first one, in nats per answer; ``None`` where
            it is not measured.
        length: Mean length of that model's outputs in tokens.
        length_before: Mean length of the outputs of the model it began with.
        unfinished: Share of that model's outputs that were cut off.
        beta_first: Beta at the beginning of the training.
        beta_last: Beta at its end; ``None`` where the method has none.
        seconds: Stage to how long it took.
        stopped: Stages that a limit of the judge's budget has ended early.
    """

    round: int
    pairs: int
    trained_pairs: int
    score: float | None
    gap: float | None
    win_rate: float
    win_rate_interval: Interval
    kl: float | None
    length: float
    length_before: float
    unfinished: float
    beta_first: float
    beta_last: float | None
    seconds: dict[str, float]
    stopped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {**asdict(self), "win_rate_interval": self.win_rate_interval._asdict()}


def beta_after(plan: LoopPlan, number: int) -> float | None:
    """Return where the training of a round has left beta; ``None`` where its method has none."""
    beta: float | None = _read(plan.folder_of(number) / "train" / SUMMARY).get("beta_final")
    return beta


def figures_of(
    plan: LoopPlan,
    number: int,
    *,
    trained_pairs: int,
    beta_first: float,
    seconds: Mapping[str, float],
    stopped: tuple[str, ...],
) -> RoundFigures:
    """Return the figures of a round whose stages are done."""
    folder = plan.folder_of(number)
    rollout, evaluation = (
        _read(folder / "rollout" / "summary.json"),
        _read(folder / "evaluation" / "summary.json"),
    )
    name, before = plan.name_of_model(number), plan.name_of_model(number - 1)
    models = {model["name"]: model for model in evaluation["models"]}
    overall = evaluation["pairs"][0]["overall"]
    kl = {point["name"]: point["kl"] for point in evaluation["frontier"]}
    return RoundFigures(
        round=number,
        pairs=rollout["pairs"],
        trained_pairs=trained_pairs,
        score=_mean(rollout["score"]),
        gap=_mean(rollout["gap"]) if rollout["score"] else None,
        win_rate=_number(overall["rate"]),
        win_rate_interval=Interval(*(_number(overall["interval"][end]) for end in ("low", "high"))),
        kl=kl.get(name),
        length=models[name]["mean_tokens"],
        length_before=models[before]["mean_tokens"],
        unfinished=models[name]["num_unfinished"] / models[name]["num_outputs"],
        beta_first=beta_first,
        beta_last=beta_after(plan, number),
        seconds=dict(seconds),
        stopped=stopped,
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _mean(described: Mapping[str, float] | None) -> float | None:
    return None if described is None else described["mean"]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
