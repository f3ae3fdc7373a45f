"""``dynamic-dpo rollout`` where a server answers: pairs of its answers, whatever faults it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.utils.json_lines import read_json_lines
from helpers_evaluation import write_hh_rows
from scripted_server import Answer, Request, ScriptedServer, completion, error, model_list, text_completion


def answer(request: Request) -> Answer:
    """Write the prompt and as many words as its seed says; every third answer is cut."""
    body = request["body"]
    asked = body["messages"][-1]["content"]
    seed = body["seed"]
    ids = [7, *range(seed % 11)]
    replied = completion(
        f"On {asked}: " + " ".join(f"word{n}" for n in range(seed % 11)),
        finish_reason="length" if seed % 3 == 0 else "stop",
    )
    replied.body["choices"][0]["token_ids"] = [*ids, 2] if seed % 3 else ids
    return replied


def config_of(folder: Path, script: ScriptedServer, **changes: Any) -> list[str]:
    section: dict[str, Any] = {
        "engine": "server",
        "output_dir": str(folder / "out"),
        "responses_per_prompt": 6,
        "judge": "function",
        "function": "builtins:len",
        "server": {
            "base_url": script.base_url,
            "concurrency": 3,
            "initial_backoff": 0.01,
            "max_backoff": 0.01,
        },
    }
    rows = write_hh_rows(folder / "rows.jsonl", 6)
    config = {"policy_name": "policy", "dataset": {"dataset_name": str(rows), "subset": "train"}}
    path = folder / "rollout.yaml"
    path.write_text(json.dumps(config | {"rollout": section | changes}))
    return ["rollout", "--config", str(path)]


def test_pairs_are_made_of_a_servers_answers_and_its_faults_change_none(tmp_path: Path) -> None:
    pairs: list[list[dict[str, Any]]] = []
    faults = [error(503, "busy"), Answer(200, {}, cut_after=0), text_completion("no chat"), Answer(200, b"{")]
    for name, before in (("plain", []), ("faulty", faults)):
        (tmp_path / name).mkdir()
        with ScriptedServer(answer) as script:
            script.models = model_list("policy")
            script.add(*before)
            # The address is a part of what identifies the answers, and so of nothing that is compared here.
            assert umbrella.main(config_of(tmp_path / name, script)) == 0
            assert len(script.requests) == 36 + len(before)
            pairs.append(read_json_lines(tmp_path / name / "out" / "pairs.jsonl"))
            again = len(script.requests)
            assert umbrella.main(config_of(tmp_path / name, script)) == 0
            assert len(script.requests) == again
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 6
    for pair in pairs[0]:
        opening = f"On {pair['prompt_messages'][-1]['content']}: "
        assert pair["chosen"].startswith(opening)
        assert pair["rejected"].startswith(opening)
        assert len(pair["chosen"]) > len(pair["rejected"])
    outputs = read_json_lines(tmp_path / "plain" / "out" / "outputs.jsonl")
    cut = {(row["id"], row["sample"]) for row in outputs if row["finish_reason"] == "length"}
    assert cut
    about = [pair["metadata"] for pair in pairs[0]]
    assert not cut & {
        (one["prompt_id"], one[side]["sample"]) for one in about for side in ("chosen", "rejected")
    }


def test_a_servers_token_ids_go_into_the_pairs(tmp_path: Path) -> None:
    with ScriptedServer(answer) as script:
        script.models = model_list("policy")
        command = config_of(tmp_path, script)
        assert umbrella.main([*command, "rollout.server.token_ids=true"]) == 0
    for pair in read_json_lines(tmp_path / "out" / "pairs.jsonl"):
        words = pair["chosen"].split(": ")[1].split()
        # The stop token is the last, where the server says it.
        assert pair["chosen_ids"] in ([7, *range(len(words)), 2], [7, *range(len(words))])


def test_a_server_that_is_not_named_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(answer) as script:
        command = config_of(tmp_path, script)
        assert umbrella.main([*command, "rollout.server.base_url=null"]) == 2
        assert "server.base_url does not say where it is" in capsys.readouterr().err
        assert umbrella.main([*command, "rollout.engine=transformers"]) == 2
        assert "server has no effect while" in capsys.readouterr().err
        assert not script.requests
