"""AlpacaEval's and Arena-Hard's files: what goes out comes back, and what is malformed is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import (
    export_alpaca_annotations,
    export_alpaca_outputs,
    export_arena_hard_judgements,
    import_alpaca_annotations,
    import_alpaca_outputs,
    import_arena_hard_judgements,
    instruction_of,
)
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.eval.statistics.comparisons import compare
from helpers_judgements import judged

BIKE = PromptRecord.of([{"role": "user", "content": "How do I fix a bike?"}], category="coding")
CHAT = PromptRecord.of(
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Füße?\u2028Done"},
    ]
)
PROMPTS = [BIKE, CHAT]


def written(prompt: PromptRecord, model: str, text: str, sample: int = 0) -> OutputRecord:
    return OutputRecord(prompt.id, model, sample, text, num_tokens=3, finished=True)


OUTPUTS = [
    written(prompt, model, f"{model} on {prompt.id[:4]}") for prompt in PROMPTS for model in ("new", "old")
]
JUDGEMENTS = [
    judged(BIKE.id, "new", "old", "A", reason="clearer", cost=0.25),
    judged(BIKE.id, "old", "new", "tie", reason="equal", cost=0.5),
    judged(CHAT.id, "new", "old", "B"),
    judged(CHAT.id, "old", "new", "invalid"),
]


def stored(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# AlpacaEval's outputs


def test_outputs_come_back_with_their_prompts(tmp_path: Path) -> None:
    path = export_alpaca_outputs(tmp_path / "model_outputs.json", PROMPTS, OUTPUTS, "new")
    entries = json.loads(path.read_text())
    assert {tuple(sorted(entry)) for entry in entries} == {("dataset", "generator", "instruction", "output")}
    assert {entry["dataset"] for entry in entries} == {"coding", ""}
    back = import_alpaca_outputs(path, PROMPTS)
    assert sorted((o.id, o.model, o.text) for o in back.outputs) == sorted(
        (o.id, o.model, o.text) for o in OUTPUTS if o.model == "new"
    )
    assert back.judgements == []


def test_without_prompts_every_instruction_becomes_one(tmp_path: Path) -> None:
    path = export_alpaca_outputs(tmp_path / "model_outputs.json", [BIKE], OUTPUTS[:2], "new")
    (prompt,) = import_alpaca_outputs(path).prompts
    assert prompt == BIKE


def test_samples_follow_each_other_and_are_counted_back(tmp_path: Path) -> None:
    outputs = [written(BIKE, "new", "first"), written(BIKE, "new", "second", sample=1)]
    path = export_alpaca_outputs(tmp_path / "o.json", [BIKE], outputs, "new")
    assert [(o.sample, o.text) for o in import_alpaca_outputs(path).outputs] == [(0, "first"), (1, "second")]


def test_the_older_input_field_belongs_to_the_instruction(tmp_path: Path) -> None:
    path = stored(tmp_path / "o.json", [entry(instruction="Translate.", input="Hallo", output="")])
    imported = import_alpaca_outputs(path)
    assert imported.prompts[0].messages == [{"role": "user", "content": "Translate.\n\nHallo"}]
    assert imported.outputs[0].flags == ["empty"]


def entry(**fields: Any) -> dict[str, Any]:
    return {"instruction": "Hi", "output": "Hello", "generator": "new", **fields}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", r"o\.json is no JSON"),
        ({"instruction": "Hi"}, r"o\.json must hold a JSON list of entries, got dict"),
        ([entry(), "text"], r"o\.json, entry 2 must be an object, got 'text'"),
        ([entry(instruction=3)], r"entry 1: 'instruction' must be a non-empty string, got '3'"),
        ([entry(), {"instruction": "Hi", "output": "x"}], "entry 2: 'generator' .*, it is missing"),
        ([entry(output=None)], "entry 1: 'output' must be a string"),
    ],
)
def test_malformed_outputs_are_refused_by_file_and_entry(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_alpaca_outputs(stored(tmp_path / "o.json", content))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        import_alpaca_outputs(tmp_path / "missing.json")
    (tmp_path / "latin.json").write_bytes(b"[\xff]")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        import_alpaca_outputs(tmp_path / "latin.json")


def test_an_instruction_that_nobody_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'Hi' is none of the given prompts"):
        import_alpaca_outputs(stored(tmp_path / "o.json", [entry()]), PROMPTS)


def test_nothing_to_export_is_said() -> None:
    with pytest.raises(DataError, match="models with outputs: new, old"):
        export_alpaca_outputs("unwritten.json", PROMPTS, OUTPUTS, "other")
    with pytest.raises(DataError, match="not among the 1 given prompts"):
        export_alpaca_outputs("unwritten.json", [BIKE], OUTPUTS, "new")


# AlpacaEval's annotations


def test_both_orders_become_one_preference_with_the_baseline_first(tmp_path: Path) -> None:
    path = export_alpaca_annotations(
        tmp_path / "annotations.json",
        PROMPTS,
        OUTPUTS,
        JUDGEMENTS,
        model="new",
        baseline="old",
        judge="judge",
    )
    by_instruction = {item["instruction"]: item for item in json.loads(path.read_text())}
    bike, chat = by_instruction[instruction_of(BIKE)], by_instruction[instruction_of(CHAT)]
    # New won one order and tied the other: 3/4 of the way from 1 (old) to 2 (new).
    assert (bike["preference"], bike["price_per_example"]) == (1.75, 0.75)
    assert (bike["generator_1"], bike["generator_2"], bike["annotator"]) == ("old", "new", "judge")
    assert (bike["output_1"], bike["output_2"]) == (OUTPUTS[1].text, OUTPUTS[0].text)
    # Here old won the one valid order.
    assert chat["preference"] == 1.0


@pytest.mark.parametrize(
    ("preference", "verdict", "prob_first"),
    [
        (1, "A", None),
        (2.0, "B", None),
        (1.5, "tie", None),
        (0, "tie", None),
        (None, "invalid", None),
        (float("nan"), "invalid", None),
        (1.25, "A", 0.75),
        (1.875, "B", 0.125),
    ],
)
def test_a_preference_becomes_a_verdict(
    tmp_path: Path, preference: float | None, verdict: str, prob_first: float | None
) -> None:
    path = stored(tmp_path / "a.json", [annotation(preference=preference)])
    (record,) = import_alpaca_annotations(path).judgements
    assert (record.verdict, record.prob_first) == (verdict, prob_first)
    assert (record.first, record.second, record.judge) == ("old", "new", "gpt")


def annotation(**fields: Any) -> dict[str, Any]:
    return {
        "instruction": "Hi",
        "output_1": "Hello",
        "generator_1": "old",
        "output_2": "Hello!",
        "generator_2": "new",
        "annotator": "gpt",
        "preference": 2,
        **fields,
    }


def test_annotations_come_back_as_what_was_judged(tmp_path: Path) -> None:
    asked = [judged(BIKE.id, "old", "new", "B"), judged(CHAT.id, "old", "new", "tie")]
    path = export_alpaca_annotations(
        tmp_path / "a.json", PROMPTS, OUTPUTS, asked, model="new", baseline="old", judge="judge"
    )
    back = import_alpaca_annotations(path, PROMPTS)
    assert compare(back.judgements, "new", "old") == compare(asked, "new", "old")
    assert {(o.id, o.model, o.text) for o in back.outputs} == {(o.id, o.model, o.text) for o in OUTPUTS}


def test_a_file_of_annotations_goes_through_unchanged(tmp_path: Path) -> None:
    # Weights that no two decimals hold; numbers that a sum of parts would move; fields that our records do not have.
    weights = [1.0000000191, 1.999999999999, 1.1 + 1 / 3, 1.5, 2.0, 1, None, 1.4999999999999998, 0]
    entries = [
        annotation(
            instruction=f"Question {number}",
            preference=weight,
            dataset="koala",
            annotator="weighted_gpt4",
            price_per_example=0.1 + number / 3,
            time_per_example=1 / 7,
            date="2024-05-01",
            raw_completion={"text": "M", "logprobs": {"content": [{"token": "M", "logprob": -1e-7}]}},
        )
        for number, weight in enumerate(weights)
    ]
    back = import_alpaca_annotations(stored(tmp_path / "in.json", entries))
    path = export_alpaca_annotations(
        tmp_path / "out.json", *back, model="new", baseline="old", judge="weighted_gpt4"
    )
    assert json.loads(path.read_text()) == entries
    again = import_alpaca_annotations(path)
    assert again.judgements == back.judgements


def test_weights_are_averaged_over_both_orders(tmp_path: Path) -> None:
    asked = [
        judged(BIKE.id, "new", "old", "A", prob_first=0.875),
        judged(BIKE.id, "old", "new", "A", prob_first=0.5, prob_tie=0.25),
    ]
    path = export_alpaca_annotations(
        tmp_path / "a.json", PROMPTS, OUTPUTS, asked, model="new", baseline="old", judge="judge"
    )
    # .875 in one order, 1 - .5 - .25/2 = .375 in the other.
    assert json.loads(path.read_text())[0]["preference"] == 1.625


def test_annotations_stand_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    asked = [judged(prompt.id, "old", "new", "A") for prompt in PROMPTS]
    for order in (PROMPTS, PROMPTS[::-1]):
        path = export_alpaca_annotations(
            tmp_path / "a.json", order, OUTPUTS, asked, model="new", baseline="old", judge="judge"
        )
        assert [item["instruction"] for item in json.loads(path.read_text())] == list(
            map(instruction_of, order)
        )


def test_one_baseline_output_against_several_models_stays_one(tmp_path: Path) -> None:
    entries = [
        annotation(),
        annotation(generator_2="third", output_2="Hey"),
        annotation(annotator="other"),
        annotation(output_2="Hello again", price_per_example=0.1),
    ]
    back = import_alpaca_annotations(stored(tmp_path / "a.json", entries))
    assert [record.sample for record in back.judgements] == [0, 0, 0, 1]
    assert len({record.key for record in back.judgements}) == 4
    assert back.judgements[3].cost == 0.1
    texts = {(output.model, output.sample): output.text for output in back.outputs}
    assert texts == {
        ("old", 0): "Hello",
        ("new", 0): "Hello!",
        ("third", 0): "Hey",
        ("old", 1): "Hello",
        ("new", 1): "Hello again",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preference": 3}, r"entry 1: 'preference' must lie between 1 and 2 .*, got 3"),
        ({"preference": "m"}, "got 'm'"),
        ({"preference": True}, "got True"),
        ({"generator_2": "old"}, "are both 'old'"),
        ({"output_2": 5}, "'output_2' must be a string"),
    ],
)
def test_malformed_annotations_are_refused_by_entry(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_alpaca_annotations(stored(tmp_path / "a.json", [annotation(**fields)]))


def test_an_annotation_without_a_name_of_its_judge_gets_one(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.json", [annotation(annotator=None)])
    assert import_alpaca_annotations(path).judgements[0].judge == "alpaca_eval"


def test_judged_outputs_must_be_given_to_be_exported() -> None:
    with pytest.raises(DataError, match="was judged but is not given"):
        export_alpaca_annotations(
            "unwritten", PROMPTS, OUTPUTS[:1], JUDGEMENTS, model="new", baseline="old", judge="judge"
        )
    with pytest.raises(DataError, match="no judgement of 'nobody'"):
        export_alpaca_annotations(
            "unwritten", PROMPTS, OUTPUTS, JUDGEMENTS, model="new", baseline="old", judge="nobody"
        )


# Arena-Hard's judgements


def test_arena_hard_gets_the_baseline_first_and_then_the_model(tmp_path: Path) -> None:
    prompt = PromptRecord.of(BIKE.messages, category="hard_prompt", meta={"uid": "u-1"})
    path = export_arena_hard_judgements(
        tmp_path / "new.jsonl", [prompt, CHAT], JUDGEMENTS, model="new", baseline="old", judge="judge"
    )
    lines = {line["uid"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert lines["u-1"] == {
        "uid": "u-1",
        "category": "hard_prompt",
        "judge": "judge",
        "model": "new",
        "baseline": "old",
        "games": [
            {"score": "A=B", "judgment": {"answer": "equal"}, "prompt": []},
            {"score": "A>B", "judgment": {"answer": "clearer"}, "prompt": []},
        ],
    }
    assert [game["score"] for game in lines[CHAT.id]["games"]] == [None, "B>A"]


def test_an_order_that_was_not_asked_is_null_and_comes_back_as_nothing(tmp_path: Path) -> None:
    path = export_arena_hard_judgements(
        tmp_path / "new.jsonl", PROMPTS, JUDGEMENTS[:1], model="new", baseline="old", judge="judge"
    )
    assert json.loads(path.read_text())["games"][0] is None
    (record,) = import_arena_hard_judgements(path)
    assert (record.first, record.second, record.verdict, record.reason) == ("new", "old", "A", "clearer")


def test_arena_hard_judgements_come_back_with_their_orders(tmp_path: Path) -> None:
    asked = [*JUDGEMENTS, judged(BIKE.id, "new", "old", "B", sample=1)]
    path = export_arena_hard_judgements(
        tmp_path / "new.jsonl", PROMPTS, asked, model="new", baseline="old", judge="judge"
    )
    back = import_arena_hard_judgements(path)
    seen = {(r.id, r.sample, r.first, r.second, r.verdict, r.reason) for r in back}
    assert seen == {(r.id, r.sample, r.first, r.second, r.verdict, r.reason) for r in asked}


def arena(**fields: Any) -> dict[str, Any]:
    game = {"score": "A>>B", "judgment": {"answer": "Much better. [[A>>B]]"}, "prompt": []}
    return {
        "uid": "u",
        "category": "hard_prompt",
        "judge": "gpt",
        "model": "new",
        "baseline": "old",
        "games": [game, {**game, "score": "B<<A"}],
        **fields,
    }


def test_strong_labels_are_strong_wins_and_stay_so_on_the_way_back(tmp_path: Path) -> None:
    path = stored(tmp_path / "new.jsonl", json.dumps(arena()) + "\n\n")
    first, second = import_arena_hard_judgements(path)
    assert [(record.winner, record.strong) for record in (first, second)] == [("old", True), ("new", True)]
    weak = replace(second, verdict="B", strong=False)
    prompt = PromptRecord("u", BIKE.messages)
    back = export_arena_hard_judgements(
        tmp_path / "back.jsonl", [prompt], [first, weak], model="new", baseline="old", judge="gpt"
    )
    assert [game["score"] for game in json.loads(back.read_text())["games"]] == ["A>>B", "B>A"]


def test_the_first_version_needs_the_baselines_name(tmp_path: Path) -> None:
    game = {"user_prompt": "Hi", "judgment": "\nIt is a draw. [[A=B]]", "score": "A=B"}
    old = {"question_id": "q", "model": "new", "judge": "gpt", "games": [game, {**game, "score": None}]}
    path = stored(tmp_path / "new.jsonl", json.dumps(old))
    with pytest.raises(DataError, match=r"line 1: this file names no baseline .* pass baseline="):
        import_arena_hard_judgements(path)
    first, second = import_arena_hard_judgements(path, baseline="gpt-4-0314")
    assert (first.id, first.first, first.verdict, first.reason) == (
        "q",
        "gpt-4-0314",
        "tie",
        "It is a draw. [[A=B]]",
    )
    assert (second.first, second.verdict) == ("new", "invalid")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"games": [None]}, "line 1: 'games' must be a list of two games"),
        ({"games": ["text", None]}, "line 1, games must be an object"),
        ({"games": [{"score": ["A>B"]}, None]}, r"got \['A>B'\]"),
        ({"games": [{"score": "C"}, None]}, "'score' must be one of .*, got 'C'"),
        ({"model": "old"}, "both 'old'"),
        ({"uid": None}, "'uid' must be a non-empty string"),
    ],
)
def test_malformed_games_are_refused_by_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_arena_hard_judgements(stored(tmp_path / "new.jsonl", json.dumps(arena(**fields))))
