"""The engine that asks a server: every output under its prompt and seed, whatever the server does meanwhile."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, ServerError
from dynamic_dpo.eval.generate.sampling import row_key
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.stage import identify_model, read_outputs, write_outputs
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import prompt_key, render_prompt
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.utils.json_lines import read_json_lines
from scripted_server import Answer, Request, ScriptedServer, completion, error, model_list, text_completion
from tiny import word_tokenizer

SPEC = ModelSpec("ours", "policy")
PROMPTS = [PromptRecord.of([{"role": "user", "content": f"w{n} w{n + 1}"}]) for n in range(11)]
KEY = "sk-planted-3b1f8e77"


def said(body: dict[str, Any]) -> str:
    """What the server of these tests writes: a function of prompt and seed."""
    asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
    return f"{asked} / {body.get('seed')}"


def echo(request: Request) -> Answer:
    if "messages" in request["body"]:
        return completion(said(request["body"]))
    return text_completion(said(request["body"]))


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer(echo) as server:
        server.models = model_list("policy", root="/models/policy", max_model_len=512)
        yield server


def settings(
    script: ScriptedServer, *, server: dict[str, Any] | None = None, **how: Any
) -> GenerationSettings:
    address = {
        "base_url": script.base_url, "concurrency": 4, "timeout": 30.0, "max_retries": 3,
        "initial_backoff": 0.001, "max_backoff": 0.002,
    }  # fmt: skip
    asked = {"max_new_tokens": 16, "temperature": 0.9, "num_samples": 3, "seed": 5}
    return GenerationSettings(
        **asked | how, engine="server", server=ServerSettings(**address | (server or {}))
    )


def written(
    path: Path, how: GenerationSettings, prompts: list[PromptRecord] = PROMPTS, spec: ModelSpec = SPEC
) -> list[OutputRecord]:
    fingerprint = write_outputs(prompts, spec, how, path, progress=False).fingerprint
    return read_outputs(path, prompts, spec, fingerprint, how.num_samples).outputs


def expected_seed(prompt: PromptRecord, sample: int) -> int:
    return row_key(5, prompt_key(prompt.messages), sample) % 2**31


def test_every_output_lies_under_its_own_prompt_and_seed_in_any_order(
    script: ScriptedServer, tmp_path: Path
) -> None:
    script.respond = lambda request: replace(echo(request), delay=0.05)
    outputs = written(tmp_path / "out", settings(script))
    wanted = [(prompt, sample) for prompt in PROMPTS for sample in range(3)]
    assert [(o.id, o.sample, o.text) for o in outputs] == [
        (prompt.id, sample, f"{prompt.messages[0]['content']} / {expected_seed(prompt, sample)}")
        for prompt, sample in wanted
    ]
    assert len({request["body"]["seed"] for request in script.requests}) == 33
    first = script.requests[0]["body"]
    assert {key: first[key] for key in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "policy", "max_tokens": 16, "temperature": 0.9, "top_p": 0.95,
    }  # fmt: skip
    assert 1 < script.most_at_once <= 4
    shuffled = random.Random(2).sample(PROMPTS, len(PROMPTS))
    again = written(tmp_path / "other", settings(script), shuffled)
    assert sorted(again, key=str) == sorted(outputs, key=str)


def test_what_is_there_is_not_asked_for_again_and_more_samples_are_added(
    script: ScriptedServer, tmp_path: Path
) -> None:
    outputs = written(tmp_path / "out", settings(script))
    lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    (tmp_path / "out").write_bytes(b"".join(lines[:20]) + lines[20][:15])
    script.requests.clear()
    assert written(tmp_path / "out", settings(script)) == outputs
    assert len(script.requests) == 13
    assert written(tmp_path / "out", settings(script)) == outputs
    assert len(script.requests) == 13
    five = written(tmp_path / "out", settings(script, num_samples=5))
    assert len(script.requests) == 13 + 22
    assert [output for output in five if output.sample < 3] == outputs


def test_the_likeliest_token_is_asked_for_without_seed_and_nucleus(
    script: ScriptedServer, tmp_path: Path
) -> None:
    written(tmp_path / "out", settings(script, temperature=0, num_samples=1))
    bodies = [request["body"] for request in script.requests]
    assert all(body["temperature"] == 0 and not {"seed", "top_p"} & set(body) for body in bodies)


def test_a_fewest_number_of_tokens_is_asked_for_above_one(script: ScriptedServer, tmp_path: Path) -> None:
    written(tmp_path / "out", settings(script, min_new_tokens=1, num_samples=1), PROMPTS[:1])
    written(tmp_path / "out", settings(script, min_new_tokens=4, num_samples=1), PROMPTS[:1])
    assert [request["body"].get("min_tokens") for request in script.requests] == [None, 4]


def test_completions_send_the_text_that_the_model_is_to_continue(
    script: ScriptedServer, tmp_path: Path
) -> None:
    how = settings(script, server={"mode": "completions"}, num_samples=1)
    written(tmp_path / "out", how, PROMPTS[:1])
    [request] = script.requests
    assert request["path"] == "/v1/completions"
    assert request["body"]["prompt"] == "\n\nHuman: w0 w1\n\nAssistant:"
    written(tmp_path / "out", how, PROMPTS[:1], replace(SPEC, prompt_template="{prompt}\n\nTL;DR:"))
    assert script.requests[-1]["body"]["prompt"] == "w0 w1\n\nTL;DR:"


def test_with_a_tokenizer_prompts_are_rendered_here_once_and_sent_as_ids(
    script: ScriptedServer, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w91{% endif %}"
    )
    tokenizer = word_tokenizer(template=template)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    how = settings(
        script, server={"mode": "completions", "tokenizer": str(tmp_path / "tokenizer")}, num_samples=1
    )
    written(tmp_path / "out", how, PROMPTS[:2])
    sent = sorted(request["body"]["prompt"] for request in script.requests)
    assert sent == sorted(render_prompt(tokenizer, prompt.messages) for prompt in PROMPTS[:2])
    before = identify_model(SPEC, how).fingerprint
    word_tokenizer(template=template.replace("w91", "w92")).save_pretrained(tmp_path / "tokenizer")
    assert identify_model(SPEC, how).fingerprint != before


def test_ends_are_kept_and_what_was_cut_is_flagged(script: ScriptedServer, tmp_path: Path) -> None:
    reasons = {"w0 w1": "stop", "w1 w2": "length", "w2 w3": "content_filter"}
    script.respond = lambda request: completion(
        "A text.", finish_reason=reasons[request["body"]["messages"][-1]["content"]], usage=(9, 4)
    )
    outputs = written(tmp_path / "out", settings(script, num_samples=1), PROMPTS[:3])
    assert [(o.finish_reason, o.finished, o.flags, o.num_tokens) for o in outputs] == [
        ("stop", True, [], 4),
        ("length", False, ["truncated"], 4),
        ("content_filter", False, ["truncated"], 4),
    ]


def test_outputs_of_version_0_2_have_no_known_reason_and_are_read() -> None:
    row = {"id": "p", "model": "m", "sample": 0, "text": "x", "num_tokens": 1, "finished": False, "flags": []}
    assert OutputRecord.from_json(row).finish_reason is None


def test_token_ids_are_kept_without_the_token_that_ended_them(script: ScriptedServer, tmp_path: Path) -> None:
    ends: dict[str, dict[str, Any]] = {
        "w0 w1": {"finish_reason": "stop", "token_ids": [7, 8, 2], "stop_reason": None},
        "w1 w2": {"finish_reason": "stop", "token_ids": [7, 8, 3], "stop_reason": 3},
        "w2 w3": {"finish_reason": "length", "token_ids": [7, 8, 9]},
        # A text to stop at is no token: nothing is taken away.
        "w3 w4": {"finish_reason": "stop", "token_ids": [7, 8, 9], "stop_reason": "\n"},
    }

    def respond(request: Request) -> Answer:
        body = request["body"]
        assert body["return_token_ids"] is True
        end = ends[body["messages"][-1]["content"]]
        answer = completion("w3 w4", finish_reason=end["finish_reason"])
        answer.body["choices"][0].update(end)
        return answer

    script.respond = respond
    how = settings(script, server={"token_ids": True}, num_samples=1)
    outputs = written(tmp_path / "out", how, PROMPTS[:4])
    rows = {row["id"]: row for row in read_json_lines(tmp_path / "out")}
    kept = [(rows[p.id]["token_ids"], rows[p.id]["stop_token_id"]) for p in PROMPTS[:4]]
    assert kept == [([7, 8], 2), ([7, 8], 3), ([7, 8, 9], None), ([7, 8, 9], None)]
    assert [o.num_tokens for o in outputs] == [2, 2, 3, 3]
    script.respond = echo_without_ids
    with pytest.raises(ServerError, match="token_ids is true, but the server sends no token_ids"):
        written(tmp_path / "other", how, PROMPTS[:1])


def echo_without_ids(request: Request) -> Answer:
    return completion("x")


def test_further_parameters_are_sent_and_ours_can_be_taken_out(
    script: ScriptedServer, tmp_path: Path
) -> None:
    extra = {"top_k": 20, "top_p": None, "max_tokens": None, "max_completion_tokens": 16}
    how = settings(script, server={"extra_body": extra})
    written(tmp_path / "out", how, PROMPTS[:1])
    body = script.requests[0]["body"]
    assert (body["top_k"], body["max_completion_tokens"]) == (20, 16)
    assert not {"top_p", "max_tokens"} & set(body)
    assert identify_model(SPEC, how).fingerprint != identify_model(SPEC, settings(script)).fingerprint


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"server": {"concurrency": 1, "timeout": 9.0, "max_retries": 0, "token_ids": True}}, False),
        ({"batch_size": 3, "num_samples": 1}, False),
        ({"server": {"mode": "completions"}}, True),
        ({"seed": 6}, True),
        ({"max_new_tokens": 17}, True),
    ],
)
def test_only_what_a_text_depends_on_makes_another_fingerprint(
    script: ScriptedServer, change: dict[str, Any], is_other: bool
) -> None:
    changed = identify_model(SPEC, settings(script, **change)).fingerprint
    assert (changed != identify_model(SPEC, settings(script)).fingerprint) is is_other


def test_a_server_with_another_model_under_the_name_is_not_mixed_in(
    script: ScriptedServer, tmp_path: Path
) -> None:
    first = written(tmp_path / "out", settings(script))
    before = identify_model(SPEC, settings(script))
    assert before.provenance["listed"] == {"id": "policy", "root": "/models/policy", "max_model_len": 512}
    script.models = model_list(
        "policy", root="/models/policy", max_model_len=512, created=99, permission=["x"]
    )
    assert identify_model(SPEC, settings(script)) == before
    script.models = model_list("policy", root="/models/policy-2", max_model_len=512)
    script.respond = lambda request: completion("another model")
    second = written(tmp_path / "out", settings(script))
    assert {output.text for output in second} == {"another model"}
    assert len(read_json_lines(tmp_path / "out")) == len(first) + len(second)


def test_a_server_that_lists_no_such_model_is_asked_all_the_same(
    script: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.models = model_list("something")
    assert len(written(tmp_path / "out", settings(script), PROMPTS[:1])) == 3
    assert "lists no model policy (it lists: something)" in caplog.text
    for status in (404, 500):
        script.models = error(status, "no list")
        assert identify_model(SPEC, settings(script)).provenance["listed"] is None
    script.models = error(503, "loading")
    with pytest.raises(ServerError, match="status 503 at each of 4 attempts"):
        identify_model(SPEC, settings(script))


FAULTS = {
    "429 with Retry-After": error(429, "slow down", headers={"Retry-After": "0.01"}),
    "500": error(500, "oops"),
    "503": error(503, "loading"),
    "529": error(529, "overloaded"),
    "a reset": Answer(200, {}, cut_after=0),
    "a reset in the middle": completion("never whole", cut_after=40),
    "truncated JSON": Answer(200, b'{"choices": [{"mess'),
    "an HTML page": Answer(200, b"<html>busy</html>", {"Content-Type": "text/html"}),
    "a wrong type": Answer(200, {"choices": "none"}),
    "text of a wrong type": completion(7),  # type: ignore[arg-type]
    "no choices": Answer(200, {"choices": []}),
    "no message": Answer(200, {"choices": [{"finish_reason": "stop"}]}),
    "no end": completion("cut?", finish_reason=None),  # type: ignore[arg-type]
    "an aborted answer": completion("half", finish_reason="abort"),
    "an error under status 200": Answer(200, {"error": {"message": "upstream is down"}}),
    "a list": Answer(200, [1, 2]),
    "a reply without bounds": Answer(200, b" " * 17 * 2**20),
    "a compressed bomb": Answer(200, gzip.compress(b" " * 10**7), {"Content-Encoding": "gzip"}),
    "silence": completion("too late", delay=30.0),
    "a drip": completion("drop by drop" * 500, drip=0.02),
    "a drip of headers": completion("drop", drip_headers=0.02),
}  # fmt: skip


def test_faults_that_pass_change_no_output_and_are_all_that_is_asked_again(
    script: ScriptedServer, tmp_path: Path
) -> None:
    plain = written(tmp_path / "plain", settings(script))
    script.requests.clear()
    script.add(*FAULTS.values())
    how = settings(script, server={"timeout": 4.0, "max_retries": 21})
    assert written(tmp_path / "faulty", how) == plain
    asked = Counter(json.dumps(request["body"], sort_keys=True) for request in script.requests)
    assert len(asked) == 33
    assert sum(asked.values()) == 33 + len(FAULTS)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(
    script: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("POLICY_API_KEY", KEY)
    with ScriptedServer(echo) as other:
        script.respond = lambda request: Answer(
            status, b"", {"Location": f"{other.base_url}/chat/completions"}
        )
        with pytest.raises(ServerError, match=f"sends elsewhere .status {status}"):
            written(tmp_path / "out", settings(script, server={"api_key_env": "POLICY_API_KEY"}))
        assert other.requests == other.looks == []
    assert {request["key"] for request in script.requests} == {f"Bearer {KEY}"}


def test_a_prompt_that_the_server_refuses_is_left_out_with_its_reason_and_not_tried_again(
    script: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(request: Request) -> Answer:
        if "w3 w4" in request["body"]["messages"][-1]["content"]:
            return error(400, "This model's maximum context length is 8 tokens")
        return echo(request)

    script.respond = respond
    # The refused prompt comes first: whether it or the settings are at fault is found out with a short one.
    prompts = [PROMPTS[3], *PROMPTS[:3]]
    how = settings(script, server={"concurrency": 1})
    fingerprint = write_outputs(prompts, SPEC, how, tmp_path / "out", progress=False).fingerprint
    found = read_outputs(tmp_path / "out", prompts, SPEC, fingerprint, 3)
    assert found.left_out == {
        PROMPTS[3].id: "the server refuses it (status 400): This model's maximum context length is 8 tokens"
    }
    assert {output.id for output in found.outputs} == {prompt.id for prompt in PROMPTS[:3]}
    asked = [request["body"]["messages"][-1]["content"] for request in script.requests]
    assert asked == ["w3 w4", "Hi", *(f"w{n} w{n + 1}" for n in range(3) for _ in range(3))]
    assert "ours cannot be asked 1 of 4 prompts" in caplog.text
    assert len(read_json_lines(tmp_path / "out")) == 10
    write_outputs(prompts, SPEC, how, tmp_path / "out", progress=False)
    assert len(script.requests) == len(asked)


def test_settings_that_the_server_refuses_stop_the_stage_and_leave_out_no_prompt(
    script: ScriptedServer, tmp_path: Path
) -> None:
    script.respond = lambda request: error(400, "top_p is not supported by this model")
    with pytest.raises(ServerError, match=r"status 400.*top_p is not supported.*check the model's path"):
        written(tmp_path / "out", settings(script))
    assert read_json_lines(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            error(401, f"wrong key {KEY}"),
            r"refused the key .status 401.: set the environment variable POLICY_API_KEY",
        ),
        (error(403, "no"), r"refused the key .status 403."),
        (error(404, "The model `policy` does not exist"), "status 404.*does not exist"),
        (error(429, "pay", code="insufficient_quota"), "quota is used up"),
    ],
)
def test_what_no_repeating_mends_stops_the_stage_at_once(
    script: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str
) -> None:
    monkeypatch.setenv("POLICY_API_KEY", KEY)
    script.respond = lambda request: answer
    with pytest.raises(ServerError, match=message) as raised:
        written(tmp_path / "out", settings(script, server={"api_key_env": "POLICY_API_KEY"}))
    assert KEY not in str(raised.value)
    assert len(script.requests) <= 4  # Those that were under way.


def test_a_server_that_stays_away_ends_the_stage_with_what_is_written_kept(
    script: ScriptedServer, tmp_path: Path
) -> None:
    plain = written(tmp_path / "plain", settings(script))
    script.requests.clear()
    script.respond = lambda request: (
        echo(request) if len(script.requests) <= 10 else Answer(200, {}, cut_after=0)
    )
    with pytest.raises(
        ServerError,
        match=r"gave no connection at each of 4 attempts; is it running there\? Outputs written before are kept",
    ):
        written(tmp_path / "out", settings(script))
    assert len(read_json_lines(tmp_path / "out")) == 10
    script.respond, script.requests = echo, []
    assert written(tmp_path / "out", settings(script)) == plain
    assert len(script.requests) == 23


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with ScriptedServer() as gone:
        how = settings(gone)
    with pytest.raises(ServerError, match=rf"{gone.base_url} gave no connection at each of 4 attempts"):
        written(tmp_path / "out", how)


def test_a_full_disk_stops_the_asking_and_keeps_whole_lines(
    script: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    plain = written(tmp_path / "plain", settings(script))
    script.requests.clear()
    write, room = os.write, [5]

    def full(file: int, data: Any) -> int:
        if bytes(data).startswith(b'{"fingerprint"'):
            room[0] -= 1
            if room[0] < 0:
                raise OSError(28, "No space left on device")
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr("dynamic_dpo.utils.json_lines.os.write", full)
        with pytest.raises(OSError, match="No space left"):
            written(tmp_path / "out", settings(script))
    assert len(read_json_lines(tmp_path / "out")) == 5
    assert len(script.requests) <= 5 + 4
    assert written(tmp_path / "out", settings(script)) == plain


def test_a_key_that_the_server_repeats_is_not_written(
    script: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_API_KEY", KEY)
    script.respond = lambda request: completion(
        f"Your header was {request['key']}; api_key = stays", usage=None
    )
    outputs = written(
        tmp_path / "out", settings(script, server={"api_key_env": "POLICY_API_KEY"}), PROMPTS[:1]
    )
    # What only looks like a secret is the model's own text.
    assert outputs[0].text == "Your header was Bearer [key hidden]; api_key = stays"
    assert KEY not in (tmp_path / "out").read_text()


def test_halves_of_surrogate_pairs_can_be_asked_about_and_written(
    script: ScriptedServer, tmp_path: Path
) -> None:
    script.respond = lambda request: Answer(200, json.dumps(completion("half \ud83d").body).encode())
    prompt = PromptRecord.of([{"role": "user", "content": "one \ud83d"}])
    [output] = written(tmp_path / "out", settings(script, num_samples=1), [prompt])
    assert output.text == "half \ud83d"
    assert script.requests[0]["body"]["messages"][0]["content"] == "one ?"


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"base_url": None}, r"generation\.server\.base_url does not say where it is"),
        ({"base_url": "localhost:8000"}, "must be an address such as http://127"),
        ({"base_url": "http://me:secret@host/v1"}, "holds a user name, a password or a query"),
        ({"base_url": "http://host/v1?key=secret"}, "holds a user name, a password or a query"),
        ({"tokenizer": "t"}, r"tokenizer has no effect while generation\.server\.mode is chat"),
        ({"api_key_env": "sk-abcdef123456"}, "must be the name of an environment variable"),
        ({"api_key_env": "PLAIN"}, "must be the name of an environment variable"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"max_backoff": 0.0001}, "max_backoff must be at least initial_backoff"),
        ({"extra_body": {"seed": 1}}, "must not hold seed, which the engine sets"),
        ({"extra_body": {"api_key": "x"}}, "must not hold api_key"),
    ],
)
def test_settings_that_cannot_be_are_refused_without_showing_a_secret(
    script: ScriptedServer, server: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        settings(script, server=server)
    assert "secret@" not in str(raised.value)
    assert "sk-abc" not in str(raised.value)


def test_settings_of_other_engines_and_of_the_server_do_not_mix(script: ScriptedServer) -> None:
    with pytest.raises(ConfigError, match="precision is float16, which has no effect"):
        settings(script, precision="float16")
    with pytest.raises(
        ConfigError, match=r"generation\.server has no effect while generation\.engine is transformers"
    ):
        GenerationSettings(server=ServerSettings("http://host/v1"))


@pytest.mark.parametrize(
    ("spec", "server", "message"),
    [
        (
            {"prompt_format": "text"},
            {},
            "prompt_format is text, which generation.server.mode chat cannot send",
        ),
        ({"prompt_format": "chat"}, {"mode": "completions"}, "needs a tokenizer to render it"),
        ({"revision": "main"}, {}, r"models\.ours\.revision has no effect"),
    ],
)
def test_a_form_of_prompt_that_cannot_be_sent_is_refused(
    script: ScriptedServer, tmp_path: Path, spec: dict[str, Any], server: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        written(tmp_path / "out", settings(script, server=server), spec=replace(SPEC, **spec))
