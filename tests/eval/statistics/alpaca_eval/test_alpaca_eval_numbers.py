"""AlpacaEval 2's numbers from records: what is counted, what is left out, and what the difficulties rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord
from dynamic_dpo.eval.statistics import alpaca_eval
from dynamic_dpo.eval.statistics.alpaca_eval import Difficulties, alpaca_eval_table
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty import baseline_at_other_lengths, fit_jointly
from dynamic_dpo.eval.statistics.alpaca_eval.length_control import fit_length_controlled
from helpers_judgements import judged

NUM = 60
RNG = np.random.default_rng(7)
LENGTHS = {name: RNG.integers(20, 400, size=NUM) for name in ("old", "new", "other")}
WEIGHTS = {"new": RNG.uniform(0.3, 1, size=NUM), "other": RNG.uniform(0, 0.5, size=NUM)}
PROMPTS = [f"p{number:02d}" for number in range(NUM)]
OUTPUTS = [
    OutputRecord(prompt, name, 0, "x" * int(lengths[number]), 0, True)
    for name, lengths in LENGTHS.items()
    for number, prompt in enumerate(PROMPTS)
]


def judgements(*models: str) -> list[JudgementRecord]:
    return [
        judged(prompt, "old", model, "B" if weight > 0.5 else "A", prob_first=1 - weight)
        for model in models
        for prompt, weight in zip(PROMPTS, WEIGHTS[model].tolist(), strict=True)
    ]


def test_records_give_what_the_arithmetic_gives_and_difficulties_are_estimated_from_all_models() -> None:
    table = alpaca_eval_table(judgements("new", "other"), OUTPUTS, "old", judge="judge")
    assert [one.model for one in table.models] == ["new", "other"]
    assert table.difficulties is not None
    assert table.difficulties.num_models == 2
    longer = np.stack([LENGTHS[name] - LENGTHS["old"] for name in ("new", "other")]).astype(float)
    fit = fit_jointly(np.stack([WEIGHTS["new"], WEIGHTS["other"]]), longer)
    rows = baseline_at_other_lengths(fit.difficulty, fit.length_effect)
    for number, one in enumerate(table.models):
        expected = fit_length_controlled(WEIGHTS[one.model], longer[number], fit.difficulty, rows)
        assert one.controlled is not None
        assert one.controlled == pytest.approx(expected, rel=1e-4)
        assert one.weighted.rate == pytest.approx(WEIGHTS[one.model].mean())
        assert one.discrete == (WEIGHTS[one.model] > 0.5).mean()
        assert one.mean_length == LENGTHS[one.model].mean()
        assert one.num_left_out == 0


def test_the_order_of_judgements_and_outputs_changes_nothing() -> None:
    asked = judgements("new", "other")
    forth = alpaca_eval_table(asked, OUTPUTS, "old", judge="judge")
    back = alpaca_eval_table(asked[::-1], OUTPUTS[::-1], "old", judge="judge")
    assert forth.models == back.models


def test_questions_without_texts_or_difficulty_are_counted_and_left_out_of_length_control_alone() -> None:
    known = Difficulties(
        {prompt: 0.01 * number for number, prompt in enumerate(PROMPTS[:50])}, length_effect=1.0
    )
    few = [output for output in OUTPUTS if not (output.model == "new" and output.id in PROMPTS[:3])]
    (one,) = alpaca_eval_table(judgements("new"), few, "old", judge="judge", difficulties=known).models
    assert one.num_left_out == 13
    assert one.controlled is not None
    assert one.weighted.num_prompts == NUM


def test_without_texts_there_is_no_length_control() -> None:
    table = alpaca_eval_table(judgements("new"), [], "old", judge="judge")
    assert table.difficulties is None
    (one,) = table.models
    assert (one.controlled, one.num_left_out, math.isnan(one.mean_length)) == (None, NUM, True)


def test_other_judges_and_pairs_without_the_baseline_are_passed_over() -> None:
    asked = judgements("new")
    more = [
        *asked,
        judged("p00", "new", "other", "A"),
        judged("p00", "old", "new", "A", judge="another"),
        judged("p01", "old", "other", "invalid"),
    ]
    alone = alpaca_eval_table(asked, OUTPUTS, "old", judge="judge")
    assert alpaca_eval_table(more, OUTPUTS, "old", judge="judge").models == alone.models
    assert alpaca_eval_table([], OUTPUTS, "old", judge="judge").models == []


def test_both_orders_and_several_samples_weigh_as_judgements() -> None:
    twice = judgements("new") + [
        judged(
            record.id,
            "new",
            "old",
            "A" if record.verdict == "B" else "B",
            prob_first=1 - (record.prob_first or 0),
        )
        for record in judgements("new")
    ]
    known = Difficulties(dict.fromkeys(PROMPTS, 0.0), length_effect=1.0)
    (both,) = alpaca_eval_table(twice, OUTPUTS, "old", judge="judge", difficulties=known).models
    (once,) = alpaca_eval_table(judgements("new"), OUTPUTS, "old", judge="judge", difficulties=known).models
    assert both.weighted == pytest.approx(once.weighted)
    assert both.controlled is not None
    assert once.controlled is not None
    assert both.controlled.rate == pytest.approx(once.controlled.rate, abs=0.01)


def test_difficulties_without_the_worth_of_length_take_it_from_the_models() -> None:
    values = dict(zip(PROMPTS, RNG.normal(size=NUM).tolist(), strict=True))
    asked = judgements("new", "other")
    bare = alpaca_eval_table(asked, OUTPUTS, "old", judge="judge", difficulties=Difficulties(values))
    assert all(one.controlled is not None for one in bare.models)
    # The weights here have nothing to do with length, and so has what is found.
    assert all(abs(one.controlled.length_effect) < 0.5 for one in bare.models if one.controlled)


def test_the_rooms_names_are_all_there() -> None:
    assert all(getattr(alpaca_eval, name).__name__ == name for name in alpaca_eval.__all__)
    assert set(alpaca_eval.__all__) <= set(dir(alpaca_eval))


def test_difficulties_of_other_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="none of the judged prompts is among the 1 with a difficulty"):
        alpaca_eval_table(
            judgements("new"), OUTPUTS, "old", judge="judge", difficulties=Difficulties({"strange": 0.0}, 1.0)
        )
