"""The questions put to a chat model: versions that never change, one default, and the texts of version 0.2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dynamic_dpo.cli.build_evaluation import build_judge, build_plan
from dynamic_dpo.config import get_evaluation_config, load_yaml
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.chat_judge import OracleJudge
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.template import (
    DEFAULT_TEMPLATE,
    LABEL_SETS,
    custom_template,
    file_template,
    judge_template,
    judge_template_names,
)
from dynamic_dpo.eval.judges.verdict import Verdict, parse_verdict
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.utils.hashing import content_hash
from places import SOURCE, TESTS
from scripted_server import ScriptedServer, completion

GOLDEN_EVALUATION = TESTS / "golden" / "v0.2" / "evaluation"
SMALL = {"dataset": {"name": "rows.jsonl"}, "models": {"start": "models/start", "trained": "models/trained"}}


WITH_LABELS = ["arena-v1"]


@pytest.mark.parametrize("name", [name for name in judge_template_names() if name not in WITH_LABELS])
def test_a_template_asks_for_reasons_first_and_the_verdict_last(name: str) -> None:
    template = judge_template(name)
    for question in (template.question, template.question_json):
        places = [question.index(place) for place in ("{prompt}", "{output_a}", "{output_b}")]
        assert places == sorted(places)
    last = template.question.rstrip().splitlines()[-3:]
    assert [parse_verdict(line) for line in last] == [Verdict.A, Verdict.B, Verdict.TIE]
    assert template.question.index("First ") < template.question.index("Verdict:")
    assert template.question_json.index('"reason"') < template.question_json.index('"verdict"')
    assert (
        "Verdict: A" not in template.question_json
    ) or "In place of any other form" in template.question_json
    assert len(template.sha256) == 64


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_template_with_labels_asks_for_each_of_them_after_the_reasons(name: str) -> None:
    template = judge_template(name)
    assert template.labels is not None
    labels = LABEL_SETS[template.labels]
    places = [
        template.question.index(place) for place in ("{prompt}", "{output_a}", "{output_b}", "First ", "[[")
    ]
    assert places == sorted(places)
    asked = set(re.findall(r"\[\[(\S+?)\]\]", template.question))
    assert {labels[text] for text in asked} == set(labels.values())
    assert template.messages("p", "x", "y", attempt=1)[1]["content"].endswith("(Reminder 1.)\n")
    assert "Verdict:" not in template.messages("p", "x", "y", attempt=1)[1]["content"]


OWN_FILE = """[system]
Judge.
[system creative_writing]
Judge with taste.
[question]
{prompt}|{output_a}|{output_b}
[five labels]
End with [[A>>B]] to [[B>>A]].
"""


def test_a_users_file_is_a_template_with_system_prompts_by_category(tmp_path: Path) -> None:
    path = tmp_path / "arena.txt"
    path.write_text(OWN_FILE)
    template = file_template(path)
    assert (template.version, template.labels) == ("arena.txt", "five")
    texts = [
        template.messages("p", "x", "y", category=category)[0]["content"]
        for category in (None, "hard_prompt", "creative_writing")
    ]
    assert texts == ["Judge.", "Judge.", "Judge with taste."]
    assert template.messages("p", "x", "y")[1]["content"] == "p|x|y\nEnd with [[A>>B]] to [[B>>A]].\n"


def test_a_users_file_with_a_verdict_line_is_asked_for_by_the_evaluation_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(OWN_FILE.replace("[five labels]", "[line]"))
    settings = {**SMALL, "judge": {"template_file": str(path)}}
    judge = build_judge(get_evaluation_config(settings))
    assert judge.fingerprint()["template"] == "mine.txt"
    first = build_plan(get_evaluation_config(settings)).judging.identity
    path.write_text(path.read_text() + "Be brief.\n")
    assert build_plan(get_evaluation_config(settings)).judging.identity != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[system]\nJudge.\n[line]\nVerdict: A\n", r"lacks the part \[question\]"),
        (OWN_FILE.replace("[five labels]", "[seven labels]"), r"lacks the part \[line\]"),
        (OWN_FILE.replace("{output_b}", "{answer_b}"), r"mine\.txt lacks \{output_b\}"),
    ],
)
def test_a_users_file_without_a_part_or_a_place_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        file_template(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        file_template(tmp_path / "none.txt")


def test_settings_that_a_template_with_labels_or_of_a_file_does_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge\.logprobs has no effect with the template arena-v1"):
        build_judge(get_evaluation_config({"judge": {"template": "arena-v1", "logprobs": True}}))
    with pytest.raises(
        ConfigError, match=r"judge\.template_file has no effect while judge\.template is arena-v1"
    ):
        get_evaluation_config({"judge": {"template": "arena-v1", "template_file": "mine.txt"}})
    path = tmp_path / "mine.txt"
    path.write_text(OWN_FILE)
    settings = {**SMALL, "judge": {"template_file": str(path)}, "gpt4_oracle": {"system_prompt": "Other."}}
    with pytest.raises(ConfigError, match=r"while judge\.template_file is set"):
        build_plan(get_evaluation_config(settings))


def test_a_judge_with_labels_says_which_verdicts_are_strong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with ScriptedServer() as server:
        oracle = GPT4Oracle("a-judge", base_url=server.base_url, max_retries=0)
        judge = OracleJudge(oracle, template=judge_template("arena-v1"))
        server.add(completion("A errs.\n\n[[B>>A]]"), completion("My final verdict is tie: [[A=B]]"))
        prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
        replies = [judge.ask(prompt, "x", "y") for _ in range(2)]
    assert [(reply.verdict, reply.strong) for reply in replies] == [(Verdict.B, True), (Verdict.TIE, False)]


def test_an_unknown_template_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"must be one of arena-v1, .*hh-v1, .*tldr-v1, got 'hh-v9'"):
        judge_template("hh-v9")


def test_every_template_file_has_a_name_and_every_name_a_file() -> None:
    folder = SOURCE / "eval" / "judges" / "templates"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(judge_template_names())


def test_templates_of_a_version_never_change() -> None:
    # A changed text needs a new version: answers to the old one must not be taken for answers to the new.
    assert {name: judge_template(name).sha256[:16] for name in judge_template_names()} == {
        "arena-v1": "eed34c561d31ce23",
        "dialogue-v1": "788a99f7dfb956c5",
        "hh-v1": "f67663d39670d3e0",
        "request-v1": "da17f5453d6dc162",
        "tldr-v1": "a021b20a0f43e074",
    }


def test_python_and_an_evaluation_file_ask_the_same_default_and_keep_the_answers_of_version_0_2() -> None:
    by_file = build_judge(get_evaluation_config({})).fingerprint()
    assert OracleJudge(GPT4Oracle()).fingerprint() == by_file
    # Under another hash an evaluation of version 0.2 with the file's default would be paid for again.
    assert (by_file["template"], by_file["template_sha256"][:16]) == ("custom", "7853757083efb3d0")
    identity = build_plan(get_evaluation_config(SMALL)).judging.identity
    assert content_hash(identity) == "715e6ab698f25073f7e75cd7f9d04d1f"


def test_what_version_0_2_asked_in_python_is_a_template_whose_answers_are_found_again() -> None:
    old = judge_template("request-v1")
    oracle = GPT4Oracle(system_prompt=old.system, prompt_template=old.question)
    assert oracle.template.sha256[:16] == "0cbe89678fec0f37"


def test_settings_that_version_0_2_saved_with_an_evaluation_are_read() -> None:
    # They hold the default's texts beside a template that does not use them.
    saved = get_evaluation_config(load_yaml(GOLDEN_EVALUATION / "config.yaml"))
    assert saved.judge.template == "hh-v1"
    assert saved.gpt4_oracle.prompt_template == judge_template(DEFAULT_TEMPLATE).question
    note = json.loads((GOLDEN_EVALUATION / "manifest.json").read_text())["entries"]["judge"]
    assert content_hash(build_plan(saved).judging.identity) == note["settings"]
    assert build_judge(saved).fingerprint() == note["result"]["fingerprint"]


def test_a_custom_template_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks \{output_a\}, \{output_b\}"):
        custom_template("s", "{prompt}")


def test_every_attempt_asks_in_other_words() -> None:
    template = judge_template("hh-v1")
    for as_json in (False, True):
        texts = [template.messages("p", "x", "y", as_json=as_json, attempt=n)[1]["content"] for n in range(3)]
        assert len(set(texts)) == 3
        assert "Reminder" not in texts[0]
        assert texts[1].startswith(texts[0].rstrip())
