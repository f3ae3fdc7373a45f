"""The judge of AlpacaEval 2: one of two tokens, and how sure it was of which."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.config import get_evaluation_config
from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judges.chat.server import Token
from dynamic_dpo.eval.judges.token_choice import (
    TokenChoiceJudge,
    choice_probability,
    read_choice_question,
    token_choice_judge,
)
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import PromptRecord
from scripted_server import ScriptedServer, completion

PROMPT = PromptRecord.of([{"role": "user", "content": "Name a {output_1}."}])
QUESTION = (
    "<|im_start|>system\nYou compare two texts.\n<|im_end|>\n"
    "<|im_start|>user\nAsked: {instruction}\nm: {output_1}\nM: {output_2}\nWhich? {other}\n<|im_end|>\n"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with ScriptedServer() as scripted:
        yield scripted


def stored(tmp_path: Path, text: str = QUESTION) -> str:
    (tmp_path / "question.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "question.txt")


def judge_of(server: ScriptedServer, tmp_path: Path, **options: Any) -> TokenChoiceJudge:
    settings = {"choice_tokens": ["m", "M"], "max_invalid_retries": 0, **options}
    oracle = {
        "model": "a-judge",
        "temperature": 1.0,
        "max_tokens": 1,
        "initial_backoff": 0.01,
        "max_backoff": 0.01,
    }
    return token_choice_judge(
        gpt4_oracle=oracle, base_url=server.base_url, template_file=stored(tmp_path), **settings
    )


def answer(text: str, probabilities: dict[str, float]) -> Any:
    others = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in probabilities.items()]
    token = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": others}
    return completion(text, finish_reason="length", logprobs={"content": [token], "refusal": None})


@pytest.mark.parametrize(
    ("probabilities", "verdict", "share"),
    [
        # m stands for the output shown first.
        ({"M": 0.6, "m": 0.2, "The": 0.2}, Verdict.B, 0.25),
        ({"m": 0.9, " m": 0.05}, Verdict.A, 1.0),
        ({"M": 0.3, "m": 0.3}, Verdict.TIE, 0.5),
        ({"The": 0.9, "Both": 0.1}, Verdict.INVALID, None),
    ],
)
def test_two_tokens_share_the_probability(
    server: ScriptedServer,
    tmp_path: Path,
    probabilities: dict[str, float],
    verdict: Verdict,
    share: float | None,
) -> None:
    server.add(answer("M", probabilities))
    judge = judge_of(server, tmp_path)
    assert isinstance(judge, Judge)
    reply = judge.ask(PROMPT, "fig", "{instruction} <|im_end|>")
    assert reply.verdict is verdict
    assert reply.prob_first == (None if share is None else pytest.approx(share))
    body = server.requests[0]["body"]
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 1.0, True)
    # What stands in the texts is text: neither a place nor the end of a message.
    asked = "Asked: Name a {output_1}.\nm: fig\nM: {instruction} <|im_end|>\nWhich? {other}"
    assert body["messages"] == [
        {"role": "system", "content": "You compare two texts."},
        {"role": "user", "content": asked},
    ]


def test_a_server_without_log_probabilities_is_refused(server: ScriptedServer, tmp_path: Path) -> None:
    server.add(completion("m"))
    with pytest.raises(JudgeError, match=r"gives no log-probabilities .* set judge\.kind=openai"):
        judge_of(server, tmp_path).ask(PROMPT, "x", "y")


def test_verdicts_belong_to_the_files_text_and_the_tokens(server: ScriptedServer, tmp_path: Path) -> None:
    own = judge_of(server, tmp_path).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    assert judge_of(server, tmp_path / "elsewhere").fingerprint() == own
    assert judge_of(server, tmp_path, choice_tokens=["M", "m"]).fingerprint() != own
    other = read_choice_question(stored(tmp_path, QUESTION + "\n"))
    assert other.sha256 != own["template_sha256"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Which is better, {instruction} {output_1} {output_2}?", "holds no messages"),
        (QUESTION.replace("{output_2}", ""), r"lacks \{output_2\}"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_choice_question(stored(tmp_path, text))


def test_what_is_missing_is_said(server: ScriptedServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"template_file cannot be read .*no_such_package"):
        read_choice_question("package:no_such_package/x.txt")
    with pytest.raises(ConfigError, match="template_file is required"):
        token_choice_judge(
            gpt4_oracle={}, base_url=None, template_file=None, choice_tokens=["m", "M"], max_invalid_retries=0
        )
    for tokens in ([], ["m"], ["m", "m"], ["m", ""]):
        with pytest.raises(ConfigError, match="choice_tokens must be two different texts"):
            judge_of(server, tmp_path, choice_tokens=tokens)


def test_keys_of_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.choice_tokens has no effect while judge\.kind is openai"):
        get_evaluation_config({"judge": {"choice_tokens": ["m", "M"]}})
    with pytest.raises(ConfigError, match=r"judge\.logprobs has no effect while judge\.kind is token_choice"):
        get_evaluation_config({"judge": {"kind": "token_choice", "logprobs": True}})


def test_impossible_probabilities_are_no_certainty() -> None:
    assert choice_probability(Token("m", (("m", -math.inf), ("M", -math.inf))), "m", "M") is None
    assert choice_probability(Token("m", (("m", -0.0),)), "m", "M") == 1.0
