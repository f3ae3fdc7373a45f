"""Arena-Hard's score of each model: the probability of being preferred to the baseline, with style or without it.

Bradley and Terry's model: the log-odds that i is preferred to j are the difference of their strengths, to which style
control adds a term for each feature in which the outputs differ. The baseline's strength is 0, and a model's score is
the logistic function of its own. Without style, and with games against the baseline alone, that is the weighted share
of points that Arena-Hard's summary gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics.arena.battles import STRONG_WEIGHT, Battle, Battles, battles
from dynamic_dpo.eval.statistics.arena.fit import Fitted, fit
from dynamic_dpo.eval.statistics.arena.style import (
    STYLE_FEATURES,
    MarkdownUnit,
    style_difference,
    style_of,
)
from dynamic_dpo.eval.statistics.comparisons import only_judge
from dynamic_dpo.eval.statistics.resampling import Array, Interval, check_settings, percentile_interval


@dataclass(frozen=True)
class ArenaScore:
    """One model's place in a table.

    Attributes:
        model: The model.
        score: Probability of being preferred to the baseline; 0.5 for the baseline itself.
        interval: By refitting on every resample of prompts.
        controlled: The same at equal style; ``None`` where texts are missing or there is nothing to control.
        controlled_interval: Its interval.
        num_questions: Questions of this model in the fit.
    """

    model: str
    score: float
    interval: Interval
    controlled: float | None
    controlled_interval: Interval | None
    num_questions: int


@dataclass(frozen=True)
class ArenaTable:
    """The scores of all models on some prompts, best first.

    Attributes:
        category: Whose prompts; ``None`` for all.
        baseline: The model with the score 0.5.
        judge: Who judged.
        scores: By style-controlled score where there is one, else by the plain one.
        style_effects: Feature to its effect, in log-odds a standard deviation of the difference; empty without
            control.
        num_prompts: Prompts in the fit.
        num_left_out: Questions without style, left out of the controlled scores: an output's text is not there.
        unranked: Models without a game against the baseline, not even through others.
    """

    category: str | None
    baseline: str
    judge: str
    scores: tuple[ArenaScore, ...]
    style_effects: dict[str, float]
    num_prompts: int
    num_left_out: int
    unranked: tuple[str, ...]


@dataclass(frozen=True)
class ArenaResult:
    """Arena-Hard's tables by one judge.

    Attributes:
        overall: Of all prompts.
        by_category: Of each category; empty unless there are at least two.
        labels: Model to label, from its side (``>>`` much better, to ``<<`` much worse), to how many games had it.
        left_out: Model to questions that do not count: a game was not played or has no verdict.
        strong_weight: How often a strong verdict counts.
        markdown: How Markdown was compared.
        centred: Whether features were centred at their mean.
    """

    overall: ArenaTable
    by_category: dict[str, ArenaTable]
    labels: dict[str, dict[str, int]]
    left_out: dict[str, int]
    strong_weight: int
    markdown: MarkdownUnit
    centred: bool


def arena_result(
    judgements: Sequence[JudgementRecord],
    baseline: str,
    *,
    outputs: Sequence[OutputRecord] = (),
    categories: Mapping[str, str | None] | None = None,
    judge: str | None = None,
    strong_weight: int = STRONG_WEIGHT,
    markdown: MarkdownUnit = "density",
    centred: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ArenaResult:
    """Compute Arena-Hard's tables.

    Args:
        judgements: Any judgements, both orders of every question.
        baseline: The model with the score 0.5.
        outputs: The outputs that were judged; without them no style is controlled.
        categories: Prompt id to category.
        judge: Whose judgements count; ``None`` where there is only one judge.
        strong_weight: How often a strong verdict counts.
        markdown: See `style_difference`.
        centred: Whether a feature is 0 at its mean over all questions, as in Arena-Hard 2.0's own summary, and not
            where both outputs are alike. There the scores are at the average style of all models of a table; for
            one model against one baseline that would leave what the model gains by its own style in its score.
        confidence: Of the intervals.
        num_resamples: Bootstrap resamples of prompts, each with a fit of its own.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If a setting is out of range.
        DataError: If no question counts.
    """
    check_settings(confidence=confidence, num_resamples=num_resamples)
    judge = only_judge(judgements) if judge is None else judge
    found = battles(
        [record for record in judgements if record.judge == judge], baseline, strong_weight=strong_weight
    )
    if not any(row.other == baseline for row in found.rows):
        raise DataError(
            f"no question with the baseline {baseline!r} has a verdict in both orders, and Arena-Hard's score counts "
            "no other: judge with judge.both_orders=true"
        )
    features = _features(found, outputs, markdown)
    fitting = _Fitting(baseline, judge or "", features, centred, confidence, num_resamples, seed)
    groups: dict[str, list[str]] = {}
    for prompt in sorted({row.prompt for row in found.rows}):
        category = (categories or {}).get(prompt)
        if category is not None:
            groups.setdefault(category, []).append(prompt)
    labels: dict[str, dict[str, int]] = {}
    for (name, label), count in sorted(found.labels.items()):
        labels.setdefault(name, {})[label] = count
    return ArenaResult(
        overall=fitting.table(None, found.rows),
        by_category={
            category: fitting.table(category, found.only(ids)) for category, ids in sorted(groups.items())
        }
        if len(groups) > 1
        else {},
        labels=labels,
        left_out=dict(sorted(found.left_out.items())),
        strong_weight=strong_weight,
        markdown=markdown,
        centred=centred,
    )


def _features(found: Battles, outputs: Sequence[OutputRecord], markdown: MarkdownUnit) -> dict[Battle, Array]:
    """Return the style differences of every question whose two texts are there."""
    styles = {(output.id, output.sample, output.model): style_of(output.text) for output in outputs}
    # A model with one output for a prompt meets every sample of the other.
    single = {(output.id, output.model): styles[output.id, output.sample, output.model] for output in outputs}
    features = {}
    for row in found.rows:
        own, other = (
            styles.get((row.prompt, row.sample, name), single.get((row.prompt, name)))
            for name in (row.model, row.other)
        )
        if own is not None and other is not None:
            features[row] = style_difference(own, other, markdown=markdown)
    return features


@dataclass(frozen=True)
class _Fitting:
    """What all tables of a result have in common."""

    baseline: str
    judge: str
    features: Mapping[Battle, Array]
    centred: bool
    confidence: float
    num_resamples: int
    seed: int

    def table(self, category: str | None, rows: Sequence[Battle]) -> ArenaTable:
        names, unranked = _ranked(rows, self.baseline)
        rows = [row for row in rows if row.model not in unranked]
        if not rows:  # A category whose games with the baseline do not count.
            return ArenaTable(category, self.baseline, self.judge, (), {}, 0, 0, unranked)
        others = [name for name in names if name != self.baseline]
        plain = self._fit(rows, others, np.zeros((len(rows), 0)))
        styled = [row for row in rows if row in self.features]
        features, kept = self._scaled(styled)
        controlled = None
        # Without a model's texts its strength at equal style is not known, nor who comes before whom.
        if kept and _ranked(styled, self.baseline)[0] == names:
            controlled = self._fit(styled, others, features)
        scores = []
        for name in names:
            # The baseline's strength is 0 by definition.
            column = None if name == self.baseline else others.index(name)
            score, interval = self._score(plain, column)
            at_equal_style = None if controlled is None else self._score(controlled, column)
            scores.append(
                ArenaScore(
                    model=name,
                    score=score,
                    interval=interval,
                    controlled=at_equal_style[0] if at_equal_style else None,
                    controlled_interval=at_equal_style[1] if at_equal_style else None,
                    num_questions=sum(name in (row.model, row.other) for row in rows),
                )
            )
        scores.sort(key=lambda row: (-(row.score if row.controlled is None else row.controlled), row.model))
        effects = [] if controlled is None else controlled.point[len(others) :].tolist()
        return ArenaTable(
            category=category,
            baseline=self.baseline,
            judge=self.judge,
            scores=tuple(scores),
            style_effects={STYLE_FEATURES[k]: effect for k, effect in zip(kept, effects, strict=False)},
            num_prompts=plain.num_prompts,
            num_left_out=len(rows) - len(styled) if controlled is not None else 0,
            unranked=unranked,
        )

    def _fit(self, rows: Sequence[Battle], names: Sequence[str], features: Array) -> Fitted:
        return fit(rows, names, features, num_resamples=self.num_resamples, seed=self.seed)

    def _score(self, fitted: Fitted, column: int | None) -> tuple[float, Interval]:
        if column is None:
            return 0.5, Interval(0.5, 0.5)
        draws = _logistic(fitted.draws[:, column])
        return float(_logistic(fitted.point[column])), percentile_interval(draws, self.confidence)

    def _scaled(self, rows: Sequence[Battle]) -> tuple[Array, list[int]]:
        """Return the features in units of their spread, and which of them differ at all."""
        if not rows:
            return np.zeros((0, 0)), []
        values = np.array([self.features[row] for row in rows])
        middle = values.mean(0) if self.centred else np.zeros(values.shape[1])
        spread = np.sqrt(((values - middle) ** 2).mean(0))
        # Differences that are all alike leave rounding behind, not a scale.
        kept = [int(k) for k in np.flatnonzero(spread > 1e-9)]
        return (values[:, kept] - middle[kept]) / spread[kept], kept


def _ranked(rows: Sequence[Battle], baseline: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the models that hang together with the baseline, and those that do not."""
    near: dict[str, set[str]] = {}
    for row in rows:
        near.setdefault(row.model, set()).add(row.other)
        near.setdefault(row.other, set()).add(row.model)
    reached, edge = {baseline}, [baseline]
    while edge:
        new = near.get(edge.pop(), set()) - reached
        reached |= new
        edge += sorted(new)
    return sorted(reached), tuple(sorted(set(near) - reached))


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2.0)), dtype=np.float64)
