"""Shapes in which preference data is published: the row, and the pair that it gives, side by side."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.config import get_training_config
from dynamic_dpo.data import prepare_preferences, prepare_sft
from dynamic_dpo.data.pairing import detect_kind, read_row
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.quarantine import REASONS, BadRow, Quarantine
from dynamic_dpo.data.sft.rows import read_example
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.data.shapes.table import SHAPES, rewritten
from dynamic_dpo.errors import ConfigError, DataError
from helpers_tokenizers import CHATML, make_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


Q, GOOD, BAD = "2+2?", "It is 4.", "It is 5."
MESSAGES = ([user(Q)], [bot(GOOD)], [bot(BAD)])
WITH_SYSTEM = ([system("Be brief."), user(Q)], [bot(GOOD)], [bot(BAD)])
HH = "\n\nHuman: 2+2?\n\nAssistant: "
TURNS = [user("Hi"), bot("Hello!"), user(Q)]


def strength(value: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": value, **more}


def arena(winner: str) -> dict[str, Any]:
    return {"conversation_a": [*TURNS, bot(GOOD)], "conversation_b": [*TURNS, bot(BAD)], "winner": winner}


def nectar(*ranks: int) -> dict[str, Any]:
    texts = (GOOD, "It is four and a half.", BAD)
    answers = [{"answer": text, "rank": rank} for text, rank in zip(texts, ranks, strict=True)]
    return {"prompt": HH, "answers": answers}


TABLE: list[tuple[str, dict[str, Any], tuple[Any, Any, Any]]] = [
    ("orca", {"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD}, WITH_SYSTEM),
    ("orca, no system", {"system": "", "question": Q, "chosen": GOOD, "rejected": BAD}, MESSAGES),
    ("orca, null system", {"system": None, "question": Q, "chosen": GOOD, "rejected": BAD}, MESSAGES),
    ("argilla", {"system": "Be brief.", "input": Q, "chosen": GOOD, "rejected": BAD, "rating": [9, 3]}, WITH_SYSTEM),
    ("instruction", {"instruction": Q, "chosen": GOOD, "rejected": BAD}, MESSAGES),
    (
        "instruction and input",
        {"instruction": "Add.", "input": "2 and 2", "chosen": GOOD, "rejected": BAD},
        ([user("Add.\n2 and 2")], [bot(GOOD)], [bot(BAD)]),
    ),
    ("instruction, empty input", {"instruction": Q, "input": "", "chosen": GOOD, "rejected": BAD}, MESSAGES),
    ("query", {"query": Q, "chosen": GOOD, "rejected": BAD}, MESSAGES),
    (
        "answers that repeat the question",
        {"question": Q, "chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"},
        ([user(Q)], [bot(GOOD)], [bot(BAD)]),
    ),
    ("prompt wins over question", {"prompt": Q, "question": "?", "chosen": GOOD, "rejected": BAD}, MESSAGES),
    ("system beside a prompt", {"system": "Be brief.", "prompt": Q, "chosen": GOOD, "rejected": BAD}, WITH_SYSTEM),
    (
        "system_prompt beside messages",
        {"system_prompt": "Be brief.", "prompt": [user(Q)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]},
        WITH_SYSTEM,
    ),
    (
        "the same system twice",
        {"system": "Be brief.", "prompt": WITH_SYSTEM[0], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]},
        WITH_SYSTEM,
    ),
    (
        "system beside an HH transcript",
        {"system": "Be brief.", "chosen": f"{HH}{GOOD}", "rejected": f"{HH}{BAD}"},
        WITH_SYSTEM,
    ),
    (
        "ultrafeedback binarized",
        {
            "prompt": Q,
            "prompt_id": "7",
            "chosen": [user(Q), bot(GOOD)],
            "rejected": [user(Q), bot(BAD)],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        MESSAGES,
    ),
    (
        "ultrafeedback",
        {
            "instruction": Q,
            "completions": [{"response": BAD, "overall_score": 2.0}, {"response": GOOD, "overall_score": 8.5}],
        },
        MESSAGES,
    ),
    ("rated texts", {"input": Q, "generations": [BAD, GOOD], "ratings": ["2", "7"]}, MESSAGES),
    ("helpsteer2, first", strength(-2), MESSAGES),
    ("helpsteer2, second", strength(1), ([user(Q)], [bot(BAD)], [bot(GOOD)])),
    (
        "helpsteer3",
        {"context": TURNS, "response1": BAD, "response2": GOOD, "overall_preference": 3, "domain": "math"},
        (TURNS, [bot(GOOD)], [bot(BAD)]),
    ),
    ("arena, a", arena("model_a"), (TURNS, [bot(GOOD)], [bot(BAD)])),
    ("arena, b", arena("model_b"), (TURNS, [bot(BAD)], [bot(GOOD)])),
    ("nectar", nectar(1, 2, 3), MESSAGES),
    ("nectar, shuffled", nectar(3, 2, 1), ([user(Q)], [bot(BAD)], [bot(GOOD)])),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        MESSAGES,
    ),
    (
        "sharegpt with a system turn",
        {
            "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        WITH_SYSTEM,
    ),
    (
        "sharegpt turns as chosen and rejected",
        {
            "chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}],
            "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": BAD}],
        },
        MESSAGES,
    ),
    ("trl, text", {"prompt": Q, "chosen": GOOD, "rejected": BAD}, MESSAGES),
    (
        "trl, conversations",
        {"prompt": [user(Q)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]},
        MESSAGES,
    ),
    (
        "rollout with a system column",
        {"system": "Be brief.", "prompt_messages": [user(Q)], "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "pair"), [case[1:] for case in TABLE], ids=[case[0] for case in TABLE])
def test_each_shape_gives_its_pair(row: dict[str, Any], pair: tuple[Any, Any, Any]) -> None:
    kind = detect_kind(row)
    assert kind is not None
    assert tuple(read_row(row, kind, as_messages=True).pair[:3]) == pair
    # Whole sets, through Arrow and back.
    pairs, quarantine = to_preference_pairs([row] * 3, chat_template=True)
    assert len(quarantine) == 0
    assert [tuple(read[name] for name in ("prompt", "chosen", "rejected")) for read in pairs] == [pair] * 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (strength(0), "tie"),
        (strength(None), "no_verdict"),
        (strength("2"), "no_verdict"),
        (strength(float("nan")), "no_verdict"),
        (arena("tie"), "tie"),
        (arena("tie (bothbad)"), "tie"),
        (arena("nobody"), "no_verdict"),
        (nectar(1, 1, 1), "tie"),
        (
            {"system": "A", "prompt": [system("B"), user(Q)], "chosen": [bot("1")], "rejected": [bot("2")]},
            "two_systems",
        ),
        ({"system": 5, "prompt": Q, "chosen": GOOD, "rejected": BAD}, "not_text"),
    ],
)
def test_rows_without_a_preference_or_with_two_systems_are_set_aside(
    row: dict[str, Any], reason: str
) -> None:
    kind = detect_kind(row) or "text"
    with pytest.raises(BadRow, match=reason):
        read_row(row, kind, as_messages=True)
    assert reason in REASONS


def test_plain_text_has_no_place_for_a_system_text_and_says_so() -> None:
    row = {"system": "Be brief.", "prompt": Q, "chosen": GOOD, "rejected": BAD}
    with pytest.raises(BadRow, match="needs_template"):
        read_row(row, "text")
    assert read_row({**row, "system": " \u200b"}, "text").pair == (Q, GOOD, BAD)


@pytest.mark.parametrize(
    ("ranking", "rejected"),
    [("best_worst", "d"), ("best_second", "b")],
)
def test_the_rule_says_which_of_several_answers_is_the_rejected_one(ranking: Any, rejected: str) -> None:
    row = {
        "prompt": Q,
        "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abcd", start=1)],
    }
    read = read_row(row, "text", options=ShapeOptions(ranking=ranking))
    assert (read.pair.chosen, read.pair.rejected) == ("a", rejected)


def test_a_drawn_rejected_answer_hangs_on_the_row_alone() -> None:
    rows = [
        {
            "prompt": f"{n}?",
            "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abcd", start=1)],
        }
        for n in range(60)
    ]
    options = ShapeOptions(ranking="best_random")
    drawn = [read_row(row, "text", options=options).pair.rejected for row in rows]
    assert {*drawn} == {"b", "c", "d"}
    assert drawn == [read_row(row, "text", options=options).pair.rejected for row in rows]


def test_columns_may_be_named() -> None:
    row = {"task": Q, "good": GOOD, "bad": BAD, "tone": "Be brief."}
    options = ShapeOptions({"prompt": "task", "chosen": "good", "rejected": "bad", "system": "tone"})
    pairs, quarantine = to_preference_pairs([row], chat_template=True, options=options)
    assert tuple(pairs[0][name] for name in ("prompt", "chosen", "rejected")) == WITH_SYSTEM
    assert not quarantine.unused
    with pytest.raises(DataError, match="none of the first 1 rows looks like a preference pair"):
        to_preference_pairs([row], chat_template=True)
    with pytest.raises(BadRow, match="missing_field"):
        rewritten({"task": Q}, options)
    with pytest.raises(
        ConfigError, match=r"dataset\.columns names question: expected some of prompt, chosen"
    ):
        ShapeOptions({"question": "task"}).check()
    with pytest.raises(
        ConfigError, match=r"dataset\.columns must name some of prompt, chosen, rejected, system"
    ):
        get_training_config({"policy_name": "m", "dataset": {"columns": {"question": "task"}}})


def test_single_answers_with_labels_are_refused_in_a_sentence() -> None:
    rows = [
        {"prompt": Q, "completion": GOOD, "label": True},
        {"prompt": Q, "completion": BAD, "label": False},
    ]
    with pytest.raises(DataError, match=r"the rows are single answers with a label .* KTO"):
        to_preference_pairs(rows)


# ---- nothing is lost in silence ----


def test_what_nothing_reads_is_named_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    plain = {"prompt": [user(Q)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}
    rows = [
        {**plain, "score_chosen": 8.0, "tags": []},
        {**plain, "score_chosen": 7.0, "chosen": [{**bot(GOOD), "weight": 1}]},
        {**plain, "note": None},
    ]
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        _, quarantine = to_preference_pairs(rows, quarantine=Quarantine("rows"))
    assert quarantine.unused == {"score_chosen": 2, "messages.weight": 1}
    said = [record.getMessage() for record in caplog.records if "nothing reads" in record.getMessage()]
    assert said == ["rows: nothing reads score_chosen (2 rows), messages.weight (1 rows)"]


def test_the_report_names_shapes_and_what_nothing_reads(tmp_path: Path) -> None:
    rows = [strength(-1, language="en") | {"prompt": f"{n}+2?"} for n in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer(chat_template=CHATML)
    report = prepare_preferences(
        str(path), tokenizer, chat_template=True, val_ratio=0, report_dir=tmp_path
    ).report
    [source] = report["sources"]
    assert (source["shapes"], source["unused"]) == ({"helpsteer": 8}, {"language": 8})
    assert json.loads((tmp_path / "data_report.json").read_text())["sources"] == [source]


def test_fine_tuning_takes_the_good_answer_of_every_shape(tmp_path: Path) -> None:
    assert read_example(strength(1), as_messages=True).completion == [bot(BAD)]
    assert read_example(nectar(2, 1, 3), as_messages=False).completion == "It is four and a half."
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"task": Q, "good": GOOD, "bad": BAD}) + "\n")
    columns = {"prompt": "task", "chosen": "good", "rejected": "bad"}
    prepared = prepare_sft(str(path), make_tokenizer(chat_template=CHATML), columns=columns, val_ratio=0)
    assert prepared.train[0] == {"prompt": [user(Q)], "completion": [bot(GOOD)]}


def fuzzed(draw: random.Random) -> dict[str, Any]:
    """Return a row of the table with values changed, columns added and columns lost."""
    row = dict(draw.choice(TABLE)[1])
    odd = [
        None,
        "",
        " ",
        0,
        -3,
        2.5,
        True,
        [],
        {},
        [user("x")],
        {"from": "gpt", "value": "x"},
        "text",
        ["a", "b"],
    ]
    for name in list(row):
        if draw.random() < 0.15:
            row[name] = draw.choice(odd)
        elif draw.random() < 0.05:
            del row[name]
    for name in draw.sample(["note", "source", "tags", "meta", "score"], k=draw.randint(0, 2)):
        row[name] = draw.choice(odd)
    return row


def test_ten_thousand_fuzzed_rows_are_kept_or_set_aside_and_no_column_is_lost_unnamed() -> None:
    draw = random.Random(0)
    rows = [fuzzed(draw) for _ in range(10_000)]
    added = {"note", "source", "tags", "meta", "score"}
    kinds = [detect_kind(row) for row in rows]
    kept = total = 0
    for kind in ("text", "messages", "hh", "rollouts"):
        of_kind = [row for row, found in zip(rows, kinds, strict=True) if found == kind]
        pairs, quarantine = to_preference_pairs(of_kind, kind=kind, chat_template=True)
        assert len(pairs) + len(quarantine) == len(of_kind)
        good = [of_kind[row] for row in pairs["row"]]
        for name in added:
            held = sum(row.get(name) not in (None, "", [], {}) for row in good)
            assert quarantine.unused[name] == held, (kind, name)
        kept += len(pairs)
        total += len(of_kind)
    assert total > 8000
    assert kept > 4000


def test_every_shape_of_the_table_is_tried() -> None:
    tried = {name for _, row, _ in TABLE for name in rewritten(row, ShapeOptions())[1]}
    assert tried == set(SHAPES)
