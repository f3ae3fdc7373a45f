"""The questions about conversations: the package's own for any number of turns, published ones from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.labels import THREE_LABELS
from dynamic_dpo.eval.judges.turns.chat import TurnsJudge
from dynamic_dpo.eval.judges.turns.templates import (
    PUBLISHED,
    Conversation,
    own_template,
    published_template,
)
from dynamic_dpo.eval.judges.verdict import Verdict
from scripted_server import ScriptedServer, completion

ONE = Conversation(("Q1?",), ("A1.",))
TWO = Conversation(("Q1?", "Q2 {braces}?"), ("A1.", "A2."), ("R1.", "R2."))


def test_the_package_asks_about_the_last_of_any_number_of_turns() -> None:
    template = own_template()
    for shown in (ONE, TWO, Conversation(("a", "b", "c"), ("x", "y", "z"))):
        system, question = (message["content"] for message in template.grading(shown))
        assert "fair" in system
        turns = zip(shown.questions, shown.answers, strict=True)
        assert "\n\n".join(f"User: {asked}\n\nAssistant: {said}" for asked, said in turns) in question
        assert question.rstrip().endswith("Rating: [[5]]")
        assert ("right_answers" in question) == bool(shown.references)
    assert "Right answer: R2." in template.grading(TWO)[1]["content"]


def test_a_comparison_shows_both_conversations_and_asks_for_three_labels() -> None:
    other = TWO._replace(answers=("B1.", "B2."))
    question = own_template().comparing(TWO, other)[1]["content"]
    assert question.index("A2.") < question.index("B1.") < question.index("B2.")
    assert set(re.findall(r"\[\[(\w)\]\]", question)) == set(THREE_LABELS)


def test_the_text_of_the_version_never_changes() -> None:
    assert own_template().sha256[:16] == "ea9317a3b2811230"


def test_every_attempt_asks_in_other_words() -> None:
    texts = [own_template().grading(ONE, attempt=n)[1]["content"] for n in range(3)]
    assert len(set(texts)) == 3
    assert texts[1].startswith(texts[0].rstrip())


def published(path: Path, *left_out: str) -> Path:
    rows = []
    for (kind, has_references, is_second), name in PUBLISHED.items():
        turns = (1, 2) if is_second else ("",)
        keys = ["question", *(["answer"] if kind == "grade" else ["answer_a", "answer_b"])]
        places = [f"{{{key}_{turn}}}" if turn else f"{{{key}}}" for turn in turns for key in keys]
        places += [f"{{ref_answer_{turn or 1}}}" for turn in turns if has_references]
        rows.append({"name": name, "system_prompt": f"S {name}", "prompt_template": "|".join(places)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["name"] not in left_out))
    return path


def test_published_questions_are_chosen_and_filled_by_turn_and_references(tmp_path: Path) -> None:
    template = published_template(published(tmp_path / "judge_prompts.jsonl"))
    assert template.version == "judge_prompts.jsonl"
    grading = [template.grading(shown) for shown in (ONE, ONE._replace(references=("R1.",)), TWO)]
    assert [(m[0]["content"], m[1]["content"]) for m in grading] == [
        ("S single-v1", "Q1?|A1."),
        ("S single-math-v1", "Q1?|A1.|R1."),
        ("S single-math-v1-multi-turn", "Q1?|A1.|Q2 {braces}?|A2.|R1.|R2."),
    ]
    other = TWO._replace(answers=("B1.", "B2."), references=())
    comparing = template.comparing(TWO._replace(references=()), other)
    assert comparing[1]["content"] == "Q1?|A1.|B1.|Q2 {braces}?|A2.|B2."
    assert comparing[0]["content"] == "S pair-v2-multi-turn"


def test_a_file_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge_prompts.jsonl"
    three = Conversation(("a", "b", "c"), ("x", "y", "z"))
    with pytest.raises(ConfigError, match="for one turn and for two, and a prompt has 3"):
        published_template(published(path)).grading(three)
    with pytest.raises(ConfigError, match="lacks the question 'single-v1'"):
        published_template(published(path, "single-v1")).grading(ONE)
    path.write_text('{"name": "single-v1"}\n')
    with pytest.raises(ConfigError, match="must have the texts system_prompt and"):
        published_template(path)
    path.write_text('{"name": "other"}\n')
    with pytest.raises(ConfigError, match="holds none of the questions single-v1"):
        published_template(path)
    path.write_text("no json")
    with pytest.raises(ConfigError, match="cannot be read as JSON lines"):
        published_template(path)


def test_the_judge_reads_grades_and_labels_and_nothing_of_a_reply_that_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with ScriptedServer() as server:
        judge = TurnsJudge(GPT4Oracle("a-judge", base_url=server.base_url, max_retries=0), own_template())
        server.add(
            completion("Good. Rating: [[9]]"),
            completion("Rating: [[9]]", finish_reason="length"),
            completion("Both are wrong. [[C]]"),
            completion("No idea."),
        )
        graded = [judge.grade(TWO) for _ in range(2)]
        compared = [
            judge.compare(TWO, ONE._replace(questions=TWO.questions, answers=("x", "y"))) for _ in range(2)
        ]
        judge.close()
    assert [(reply.grade, reply.is_usable) for reply in graded] == [(9.0, True), (None, False)]
    assert [(reply.verdict, reply.is_usable) for reply in compared] == [
        (Verdict.TIE, True),
        (Verdict.INVALID, False),
    ]
    assert graded[0].prompt_tokens == 100
