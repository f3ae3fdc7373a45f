"""What AlpacaEval 2 would publish of an evaluation's judgements: weighted and length-controlled win rates.

For AlpacaEval's own prompts, baseline and judge they are its numbers; for any other evaluation the same arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty import baseline_at_other_lengths, fit_jointly
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import Difficulties
from dynamic_dpo.eval.statistics.alpaca_eval.l1_logistic import Array
from dynamic_dpo.eval.statistics.alpaca_eval.length_control import (
    BaselineAtOtherLengths,
    LengthControlled,
    fit_length_controlled,
)
from dynamic_dpo.eval.statistics.alpaca_eval.weighted import (
    Preference,
    WeightedWinRate,
    mean_preference,
    preferences,
)


@dataclass(frozen=True)
class AlpacaEvalNumbers:
    """One model against the baseline, as AlpacaEval 2 counts.

    Attributes:
        model: Whose wins are counted.
        baseline: Against whom.
        judge: Who judged.
        weighted: The mean preference.
        discrete: Share of questions won, a preference of a half counting half, in [0, 1].
        controlled: The length-controlled win rate; ``None`` where the texts that were judged are not there.
        num_left_out: Questions without both texts or without a difficulty, left out of ``controlled``.
        mean_length: Mean length of the model's judged outputs in characters; NaN without them.
    """

    model: str
    baseline: str
    judge: str
    weighted: WeightedWinRate
    discrete: float
    controlled: LengthControlled | None
    num_left_out: int
    mean_length: float


@dataclass(frozen=True)
class AlpacaEvalTable:
    """The numbers of every model that was compared with one baseline.

    Attributes:
        models: In the order of their length-controlled win rates, the highest first.
        difficulties: What the length-controlled win rates rest on; ``None`` if there is none.
    """

    models: list[AlpacaEvalNumbers]
    difficulties: Difficulties | None


def alpaca_eval_table(
    judgements: Sequence[JudgementRecord],
    outputs: Sequence[OutputRecord],
    baseline: str,
    *,
    judge: str,
    difficulties: Difficulties | None = None,
) -> AlpacaEvalTable:
    """Compute the numbers of AlpacaEval 2 for every model that was compared with a baseline.

    Args:
        judgements: Any judgements; those that are not between a model and the baseline, or of other judges, are
            passed over.
        outputs: The outputs that were judged; lengths are counted in characters.
        baseline: Against whom.
        judge: Whose judgements count.
        difficulties: Of the prompts. ``None``: estimated from all these models together.

    Raises:
        DataError: If a judgement cannot be read, or no judged prompt has one of the difficulties given.
    """
    own = [record for record in judgements if record.judge == judge]
    names = {name for record in own for name in (record.first, record.second)}
    asked = {
        model: found
        for model in sorted(names - {baseline})
        if (found := preferences(own, model, baseline, judge=judge))
    }
    lengths = {(output.id, output.sample, output.model): len(output.text) for output in outputs}
    rows = {model: _Rows.of(found, lengths, model, baseline) for model, found in asked.items()}
    with_texts = {model: part for model, part in rows.items() if len(part.prompts)}
    if difficulties is None and with_texts:
        difficulties = _estimated(with_texts)
    controlled: dict[str, LengthControlled] = {}
    left_out: dict[str, int] = {}
    if difficulties is not None and with_texts:
        controlled, left_out = _controlled(with_texts, difficulties)
    numbers = [
        AlpacaEvalNumbers(
            model=model,
            baseline=baseline,
            judge=judge,
            weighted=mean_preference(found),
            discrete=_discrete(found),
            controlled=controlled.get(model),
            num_left_out=rows[model].num_left_out + left_out.get(model, 0),
            mean_length=rows[model].mean_length,
        )
        for model, found in asked.items()
    ]
    numbers.sort(key=lambda one: (-(one.controlled.rate if one.controlled else one.weighted.rate), one.model))
    return AlpacaEvalTable(numbers, difficulties if controlled else None)


@dataclass(frozen=True)
class _Rows:
    """A model's questions with both texts: one row each."""

    prompts: list[str]
    values: Array
    longer: Array
    weights: Array
    num_left_out: int
    mean_length: float

    @classmethod
    def of(
        cls,
        found: Sequence[Preference],
        lengths: Mapping[tuple[str, int, str], int],
        model: str,
        baseline: str,
    ) -> _Rows:
        kept = [
            (one, lengths[one.prompt, one.sample, model], lengths[one.prompt, one.sample, baseline])
            for one in found
            if (one.prompt, one.sample, model) in lengths and (one.prompt, one.sample, baseline) in lengths
        ]
        return cls(
            [one.prompt for one, _, _ in kept],
            np.array([one.value for one, _, _ in kept]),
            np.array([float(length - other) for _, length, other in kept]),
            np.array([float(one.num_judgements) for one, _, _ in kept]),
            len(found) - len(kept),
            sum(length for _, length, _ in kept) / len(kept) if kept else math.nan,
        )

    def only(self, keep: Sequence[int]) -> _Rows:
        return _Rows(
            [self.prompts[row] for row in keep],
            self.values[keep],
            self.longer[keep],
            self.weights[keep],
            self.num_left_out,
            self.mean_length,
        )


def _estimated(rows: Mapping[str, _Rows]) -> Difficulties:
    """Estimate difficulties; of several outputs of a model to one prompt the mean counts."""
    prompts = sorted({prompt for part in rows.values() for prompt in part.prompts})
    places = {prompt: place for place, prompt in enumerate(prompts)}
    values, longer = np.full((2, len(rows), len(prompts)), np.nan)
    for number, part in enumerate(rows.values()):
        at = np.array([places[prompt] for prompt in part.prompts])
        total = np.bincount(at, weights=part.weights, minlength=len(prompts))
        for kept, of_rows in ((values, part.values), (longer, part.longer)):
            sums = np.bincount(at, weights=part.weights * of_rows, minlength=len(prompts))
            kept[number, total > 0] = sums[total > 0] / total[total > 0]
    fit = fit_jointly(values, longer)
    known = dict(zip(prompts, fit.difficulty.tolist(), strict=True))
    return Difficulties(known, fit.length_effect, num_models=len(rows))


def _controlled(
    rows: Mapping[str, _Rows], difficulties: Difficulties
) -> tuple[dict[str, LengthControlled], dict[str, int]]:
    """Fit every model; also return how many of its rows have no difficulty."""
    places = {prompt: place for place, prompt in enumerate(difficulties.values)}
    kept = {
        model: part.only([row for row, prompt in enumerate(part.prompts) if prompt in places])
        for model, part in rows.items()
    }
    kept = {model: part for model, part in kept.items() if part.prompts}
    if not kept:
        raise DataError(
            f"none of the judged prompts is among the {len(places)} with a difficulty: is the file of these prompts?"
        )

    def fit(part: _Rows, baseline: BaselineAtOtherLengths | None) -> LengthControlled:
        difficulty = np.array([difficulties.values[prompt] for prompt in part.prompts])
        place = np.array([places[prompt] for prompt in part.prompts], dtype=np.intp)
        return fit_length_controlled(
            part.values, part.longer, difficulty, baseline, place=place, weight=part.weights
        )

    baseline = difficulties.baseline
    if baseline is None:
        effect = difficulties.length_effect
        if effect is None:
            # A table of difficulties alone: what length is worth to this judge is taken from the models at hand.
            effect = float(np.median([fit(part, None).length_effect for part in kept.values()]))
        judged = sorted({prompt for part in kept.values() for prompt in part.prompts}, key=places.__getitem__)
        baseline = baseline_at_other_lengths(
            np.array([difficulties.values[prompt] for prompt in judged]), effect
        )
        baseline = baseline._replace(place=np.tile([places[prompt] for prompt in judged], 2))
    left_out = {
        model: len(part.prompts) - len(kept[model].prompts) if model in kept else len(part.prompts)
        for model, part in rows.items()
    }
    return {model: fit(part, baseline) for model, part in kept.items()}, left_out


def _discrete(found: Sequence[Preference]) -> float:
    outcomes = [0.5 if one.value == 0.5 else float(one.value > 0.5) for one in found]
    return math.fsum(outcomes) / len(outcomes)
