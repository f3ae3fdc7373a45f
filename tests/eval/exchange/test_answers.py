"""Answers in the files of Arena-Hard and MT-Bench, found by the questions' identifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import answers_to_prompt, import_answers
from dynamic_dpo.eval.generate.ready import ready_outputs
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.rows import read_prompt

V2 = {
    "uid": "u1",
    "model": "o3",
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": {"answer": "Two."}}],
}
V01 = {
    "question_id": "q1",
    "model_id": "gpt",
    "choices": [{"index": 0, "turns": [{"content": "One.", "token_len": 2}]}],
}
MT = {"question_id": 81, "model_id": "vicuna", "choices": [{"index": 0, "turns": ["First.", "Second."]}]}


def stored(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "model", "turns"),
    [
        (V2, "o3", {"u1": ["Two."]}),
        (V01, "gpt", {"q1": ["One."]}),
        (MT, "vicuna", {"81": ["First.", "Second."]}),
    ],
)
def test_answers_of_every_version_are_read(
    tmp_path: Path, line: dict[str, Any], model: str, turns: dict[str, list[str]]
) -> None:
    assert import_answers(stored(tmp_path / "a.jsonl", line)) == (model, turns)


def test_answers_are_those_of_the_prompt_with_the_same_identifier(tmp_path: Path) -> None:
    path = stored(tmp_path / "o3.jsonl", V2)
    known = read_prompt({"uid": "u1", "category": "hard_prompt", "prompt": "Q"})
    strange = read_prompt({"uid": "u2", "category": "hard_prompt", "prompt": "R"})
    assert answers_to_prompt(import_answers(path), known) == ["Two."]
    found = ready_outputs(ModelSpec("base", f"outputs:{path}"), [known, strange])
    assert [(output.id, output.model, output.text) for output in found.outputs] == [
        (known.id, "base", "Two.")
    ]
    assert found.left_out == {strange.id: "no answer in o3.jsonl"}
    with pytest.raises(DataError, match=r"no answer to any of the 1 prompts: .* uid or question_id"):
        ready_outputs(ModelSpec("base", f"outputs:{path}"), [strange])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{**V2, "uid": None}], "line 1 has neither 'uid' nor 'question_id'"),
        ([{**V01, "choices": []}], "choices must be a list that is not empty"),
        ([{**MT, "choices": [{"turns": [1]}]}], "its answers must be texts"),
        ([{**V2, "messages": [{"role": "user", "content": "Q"}]}], "its answers must be texts"),
        ([{**V2, "messages": ["Q"]}], "messages must be an object"),
        ([V2, {**V2, "model": "o4"}], r"answers of 2 models \(o3, o4\)"),
        ([{**V01, "model_id": 3}], "'model_id' must be a non-empty string"),
    ],
)
def test_malformed_answers_are_refused_by_line(
    tmp_path: Path, lines: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_answers(stored(tmp_path / "a.jsonl", *lines))
