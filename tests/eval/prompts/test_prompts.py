"""Prompts of an evaluation: any published shape, named by content, counted, drawn by seed and content alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.prompts.rows import PromptFields, read_prompt
from dynamic_dpo.eval.prompts.sets import load_prompts, read_prompts, write_prompts
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.utils.hashing import content_hash


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {turn}" for number, turn in enumerate(turns))


# Shape of a row, the prompt's messages, the known answer, the category.
ROWS: dict[str, tuple[Any, list[dict[str, str]], str | None, str | None]] = {
    "plain text": ("Name a fruit.", [user("Name a fruit.")], None, None),
    "list of messages": ([user("Hi"), assistant("Yes?"), user("Bye")],
                         [user("Hi"), assistant("Yes?"), user("Bye")], None, None),
    "list of messages with its answer": ([user("Hi"), assistant("Yes?")], [user("Hi")], "Yes?", None),
    "HH, one turn": ({"chosen": hh("Hi", "Hello"), "rejected": hh("Hi", "No")}, [user("Hi")], "Hello", None),
    "HH, three turns": ({"chosen": hh("Hi", "Yes?", "Bye", "So long"), "rejected": hh("Hi", "Yes?", "Bye", "No")},
                        [user("Hi"), assistant("Yes?"), user("Bye")], "So long", None),
    "HH prompt alone": ({"prompt": hh("Hi", "Yes?", "Bye") + "\n\nAssistant:"},
                        [user("Hi"), assistant("Yes?"), user("Bye")], None, None),
    "text mentioning a tag later": ({"prompt": "A letter:\n\nHuman: x"}, [user("A letter:\n\nHuman: x")], None, None),
    "text pair": ({"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}, [user("2+2?")], "4", None),
    "text pair, implicit prompt": ({"chosen": "The sky is blue.", "rejected": "The sky is black."},
                                   [user("The sky is")], "blue.", None),
    "conversational pair": ({"prompt": [user("2+2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
                            [user("2+2?")], "4", None),
    "conversations that begin alike": (
        {"prompt": "2+2?", "chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")]},
        [user("2+2?")], "4", None),
    "chosen conversation alone": ({"chosen": [user("2+2?"), assistant("4")]}, [user("2+2?")], "4", None),
    "equal conversations": ({"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("4")]},
                            [user("2+2?")], "4", None),
    "supervised conversation": ({"messages": [user("2+2?"), assistant("4")]}, [user("2+2?")], "4", None),
    "prompt and completion": ({"prompt": "2+2?", "completion": " 4"}, [user("2+2?")], "4", None),
    "judged rollouts": ({"prompt_messages": [user("Hi")], "chosen": "a", "rejected": "b"}, [user("Hi")], "a", None),
    "AlpacaEval": ({"instruction": "Name a fruit.", "output": "Fig", "generator": "m", "dataset": "koala"},
                   [user("Name a fruit.")], "Fig", "koala"),
    "instruction with input": ({"instruction": "Sort.", "input": "2 1", "output": "1 2"},
                               [user("Sort.\n\n2 1")], "1 2", None),
    "Arena-Hard 0.1": ({"question_id": "7", "category": "arena-hard-v0.1", "turns": [{"content": "Why?"}]},
                       [user("Why?")], None, "arena-hard-v0.1"),
    "Arena-Hard 2": ({"uid": "ab", "category": "hard_prompt", "prompt": "Why?"}, [user("Why?")], None, "hard_prompt"),
    "two turns of text": ({"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
                          [user("Write.")], None, "writing"),
    "TL;DR": ({"post": "A long story.", "summary": "Short."}, [user("A long story.")], "Short.", None),
    "nested TL;DR": ({"info": {"post": "Long."}, "summary": "Short."}, [user("Long.")], "Short.", None),
}  # fmt: skip


@pytest.mark.parametrize("shape", ROWS)
def test_every_published_shape_gives_its_prompt_answer_and_category(shape: str) -> None:
    row, messages, reference, category = ROWS[shape]
    prompt = read_prompt(row)
    assert (prompt.messages, prompt.reference, prompt.category) == (messages, reference, category)
    assert prompt.id == content_hash(messages)


BAD: dict[str, tuple[Any, str]] = {
    "a number": (3, "not_an_object"),
    "no prompt": ({"answer": "x"}, "missing_field"),
    "blank text": ("  \n", "empty_prompt"),
    "no messages": ([], "empty_prompt"),
    "message without content": ([{"role": "user"}], "bad_message"),
    "prompt is a number": ({"prompt": 7}, "not_text"),
    "half a surrogate": ({"prompt": "\ud800"}, "not_text"),
    "two assistant turns": ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"}, "nothing_to_answer"),
    "blank last turn": ([user("Hi"), assistant("Yes?"), user(" ")], "nothing_to_answer"),
    "no turns": ({"question_id": 1, "turns": []}, "missing_field"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_row_that_is_no_prompt_says_why(fault: str) -> None:
    row, reason = BAD[fault]
    with pytest.raises(BadRow) as caught:
        read_prompt(row)
    assert caught.value.reason == reason


def test_given_fields_are_taken_and_must_be_there() -> None:
    row = {"body": {"text": "Post"}, "gist": "Short", "url": "u1", "nr": 4, "prompt": "not this"}
    fields = PromptFields("body.text", "gist", "nr", ("url",), "helpful")
    prompt = read_prompt(row, fields)
    assert (prompt.messages, prompt.reference, prompt.category) == ([user("Post")], "Short", "helpful")
    assert prompt.meta == {"url": "u1", "source_id": "4"}
    for missing in ("body", "gist", "nr"):
        with pytest.raises(BadRow, match="missing_field"):
            read_prompt({key: value for key, value in row.items() if key != missing}, fields)


def test_identifiers_of_published_sets_are_kept_and_their_texts_are_not_touched() -> None:
    prompt = read_prompt({"uid": "ab", "category": "hard_prompt", "prompt": "Why?\n"})
    assert prompt.meta == {"uid": "ab", "source_id": "ab"}
    assert prompt.messages == [user("Why?\n")]


def write_rows(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_sample_depends_on_seed_and_content_and_not_on_the_order(tmp_path: Path) -> None:
    rows = [f"prompt {number}" for number in range(60)]
    forward = load_prompts(write_rows(tmp_path / "a.jsonl", rows), max_samples=20, seed=1).prompts
    random.Random(0).shuffle(rows)
    shuffled = load_prompts(write_rows(tmp_path / "b.jsonl", rows), max_samples=20, seed=1).prompts
    assert forward == shuffled
    assert load_prompts(str(tmp_path / "a.jsonl"), max_samples=7, seed=1).prompts == forward[:7]
    other = load_prompts(str(tmp_path / "a.jsonl"), max_samples=20, seed=2).prompts
    assert {p.id for p in other} != {p.id for p in forward}
    # Not the first twenty of the file, nor of the alphabet.
    assert {p.messages[0]["content"] for p in forward} != {f"prompt {number}" for number in range(20)}


def test_equal_prompts_are_one_and_which_row_is_kept_does_not_hang_on_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": "same", "completion": answer} for answer in ("x", "y", "z")] + [{"prompt": "other"}]
    one = load_prompts(write_rows(tmp_path / "a.jsonl", rows))
    two = load_prompts(write_rows(tmp_path / "b.jsonl", rows[::-1]))
    assert one.prompts == two.prompts
    assert (len(one.prompts), one.report["duplicates"], one.report["distinct"]) == (2, 2, 2)


def test_bad_rows_are_counted_by_reason_listed_and_above_a_share_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["good", "fine", "nice", {"prompt": 7}])
    with pytest.raises(DataError, match="not_text 1"):
        load_prompts(path)
    found = load_prompts(path, quarantine_max_share=0.25, report_dir=tmp_path / "out")
    assert len(found.prompts) == 3
    [source] = found.report["sources"]
    assert (source["rows"], source["quarantined"], source["reasons"]) == (4, 1, {"not_text": 1})
    [line] = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["reason"]) == (3, "not_text")
    assert json.loads((tmp_path / "out" / "data_report.json").read_text())["drawn"] == 3


def test_one_identifier_for_two_prompts_is_a_fault_of_the_row(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}, {"id": 2, "prompt": "a"}]
    found = load_prompts(write_rows(tmp_path / "a.jsonl", rows), id_field="id", quarantine_max_share=0.5)
    assert found.report["sources"][0]["reasons"] == {"duplicate_id": 1}
    assert [prompt.messages[0]["content"] for prompt in found.prompts] == ["a"]


def test_folders_of_harmless_and_helpful_rows_give_categories(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in (("harmless-base", "a"), ("helpful-base", "b"), ("red-team", "c")):
        row = {"chosen": hh(text, "yes"), "rejected": hh(text, "no")}
        write_rows(tmp_path / "hh" / name / "test.jsonl", [row])
    found = load_prompts(str(tmp_path / "hh"))
    assert {p.messages[0]["content"]: p.category for p in found.prompts} == {"a": "harmless", "b": "helpful"}
    assert found.report["categories"] == {"harmless": 1, "helpful": 1}
    assert "red-team" in caplog.text
    assert load_prompts(str(tmp_path / "hh" / "helpful-base")).prompts[0].category == "helpful"


def test_an_array_of_conversations_and_an_array_of_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "chats.json").write_text(json.dumps([[user("a")], [user("b")]]))
    (tmp_path / "texts.json").write_text(json.dumps(["a", "b"]))
    chats, texts = (load_prompts(str(tmp_path / name)).prompts for name in ("chats.json", "texts.json"))
    assert chats == texts


def test_prompts_survive_their_file_and_a_broken_file_is_named(tmp_path: Path) -> None:
    prompts = [PromptRecord.of([user("line\nbreak \u2028 and more")], reference="é", meta={"n": 1})]
    path = write_prompts(tmp_path / "prompts.jsonl", prompts)
    assert read_prompts(path) == prompts
    for broken in ('{"id": "x"}', "[1]", "{half"):
        path.write_text(broken + "\n")
        with pytest.raises(DataError, match=r"prompts\.jsonl line 1 is no prompt"):
            read_prompts(path)
    with pytest.raises(DataError, match="run the stage prepare first"):
        read_prompts(tmp_path / "nothing.jsonl")


def test_a_sample_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_samples must be at least 1"):
        load_prompts(write_rows(tmp_path / "a.jsonl", ["x"]), max_samples=0)


def test_real_rows_give_conversations_that_wait_for_the_assistant(shared_folder: Path) -> None:
    found = load_prompts(str(shared_folder / "data" / "hh-harmless"), split="train", max_samples=64)
    assert found.report["sources"][0]["rows"] == 1500
    assert len({prompt.id for prompt in found.prompts}) == 64
    assert {prompt.messages[-1]["role"] for prompt in found.prompts} == {"user"}
    assert {prompt.category for prompt in found.prompts} == {"harmless"}


def test_prompts_of_some_categories_alone_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    kinds = ("hard_prompt", "creative_writing", "hard_prompt")
    path.write_text(
        "".join(json.dumps({"uid": n, "category": k, "prompt": f"Q{n}"}) + "\n" for n, k in enumerate(kinds))
    )
    found = load_prompts(str(path), categories=["hard_prompt"])
    assert sorted(prompt.meta["uid"] for prompt in found.prompts) == ["0", "2"]
    assert found.report["categories"] == {"hard_prompt": 2}
    with pytest.raises(DataError, match=r"\(coding\); there are: creative_writing, hard_prompt"):
        load_prompts(str(path), categories=["coding"])
