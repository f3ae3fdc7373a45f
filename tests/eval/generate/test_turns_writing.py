"""Writing conversations: one loaded model for all, an interruption loses nothing, a server is asked alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.eval.generate import turns as turns_module
from dynamic_dpo.eval.generate.engines import open_engine
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.turns import (
    Conversations,
    read_conversations,
    write_conversations,
)
from dynamic_dpo.eval.generate.turns_settings import TurnsSettings
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.rows import PromptFields, read_prompt
from helpers_evaluation import save_models
from scripted_server import Answer, Request, ScriptedServer, completion, model_list

TURNS = TurnsSettings(enabled=True, temperatures={"math": 0, "stem": 0.1})
ROWS = [
    {"category": "math", "turns": ["w1 w2", "w3"]},
    {"category": "stem", "turns": ["w4", "w5", "w6 w7"]},
    {"category": "writing", "turns": ["w8"]},
    # The same first turn as the first, and another second.
    {"category": "math", "turns": ["w1 w2", "w9"]},
]
PROMPTS = [read_prompt(row, PromptFields(turns=True)) for row in ROWS]
SETTINGS = GenerationSettings(max_new_tokens=4, device="cpu", temperature=0.7)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec("tiny", save_models(tmp_path_factory.mktemp("models"))["start"])


def converse(spec: ModelSpec, path: Path, settings: GenerationSettings = SETTINGS) -> Conversations:
    written = write_conversations(PROMPTS, spec, settings, TURNS, path, progress=False)
    return read_conversations(PROMPTS, spec, settings, TURNS, path, written)


def texts(said: Conversations) -> dict[str, list[str]]:
    return {id_: [answer.text for answer in answers] for id_, answers in said.answers.items()}


def test_every_turn_is_answered_by_a_model_that_is_loaded_once(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[float] = []

    def counting(files: Any, settings: GenerationSettings) -> Any:
        loaded.append(settings.temperature)
        return open_engine(files, settings)

    monkeypatch.setattr(turns_module, "open_engine", counting)
    said = converse(spec, tmp_path / "out.jsonl")
    assert [len(said.answers[prompt.id]) for prompt in PROMPTS] == [2, 3, 1, 2]
    assert said.left_out == {}
    assert len(loaded) == 1
    # Two prompts that are the same so far share what was said, and it was written once.
    first, fourth = (said.answers[PROMPTS[number].id] for number in (0, 3))
    assert first[0] == fourth[0]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_an_interruption_anywhere_changes_nothing(spec: ModelSpec, tmp_path: Path, kept: int) -> None:
    whole = texts(converse(spec, tmp_path / "whole.jsonl"))
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    # What a kill leaves: the beginning of the file, and half a line.
    (tmp_path / "cut.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    assert texts(converse(spec, tmp_path / "cut.jsonl")) == whole
    assert len((tmp_path / "cut.jsonl").read_text().splitlines()) == 7


def test_a_server_is_asked_the_second_turn_after_its_own_first_answer(tmp_path: Path) -> None:
    asked: list[list[dict[str, str]]] = []

    def respond(request: Request) -> Answer:
        messages = request["body"]["messages"]
        asked.append(messages)
        return completion(f"answer to {messages[-1]['content']}")

    with ScriptedServer(respond) as server:
        server.models = model_list("served")
        settings = GenerationSettings(
            max_new_tokens=4, engine="server", server=ServerSettings(base_url=server.base_url, concurrency=1)
        )
        said = converse(ModelSpec("served", "served"), tmp_path / "out.jsonl", settings)
    assert texts(said)[PROMPTS[1].id] == ["answer to w4", "answer to w5", "answer to w6 w7"]
    assert [message["content"] for message in max(asked, key=len)] == [
        "w4",
        "answer to w4",
        "w5",
        "answer to w5",
        "w6 w7",
    ]


def test_a_turn_that_cannot_be_asked_ends_the_conversation_with_its_reason(
    spec: ModelSpec, tmp_path: Path
) -> None:
    long = read_prompt({"turns": ["w1", " ".join(["w2"] * 3000)]}, PromptFields(turns=True))
    written = write_conversations([long], spec, SETTINGS, TURNS, tmp_path / "out.jsonl", progress=False)
    said = read_conversations([long], spec, SETTINGS, TURNS, tmp_path / "out.jsonl", written)
    assert len(said.answers[long.id]) == 1
    assert said.left_out[long.id].startswith("turn 2: ")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])["left_out"]
