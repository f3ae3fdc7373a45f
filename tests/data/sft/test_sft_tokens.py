"""Rows for fine-tuning with a system text, tools, calls, reasoning or settings of the template: all of it arrives."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl import SFTConfig, SFTTrainer

from dynamic_dpo.data import build_sft_dataset, prepare_sft
from dynamic_dpo.data.quarantine import Quarantine
from dynamic_dpo.data.sft.tokens import tokenize_examples
from dynamic_dpo.data.sft_dataset import to_sft_examples
from dynamic_dpo.errors import DataError
from helpers_tokenizers import CHATML, STYLES, make_tokenizer

TEMPLATE = (
    "{% if tools %}<|im_start|>system\ntools{% for t in tools %} {{ t['function']['name'] }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('reasoning_content') %}think {{ m['reasoning_content'] }} {% endif %}{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}call {{ c['function']['arguments'] | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{% if loud %}!{% endif %}"
)
USER, YES = {"role": "user", "content": "weather?"}, {"role": "assistant", "content": "yes"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"days": 2}}}
LOOK = {"type": "function", "function": {"name": "look"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def parts_of(rows: list[dict[str, Any]], template: str = TEMPLATE, **options: Any) -> list[tuple[str, str]]:
    """Return what each row becomes: what is only read, and what is trained on."""
    tokenizer = make_tokenizer(chat_template=template)
    examples, quarantine = to_sft_examples(rows, layout="prompt_completion")
    assert not len(quarantine), list(quarantine)
    found = []
    for row in tokenize_examples(examples, tokenizer, quarantine=quarantine, **options):
        ids, mask = row["input_ids"], row["completion_mask"]
        assert len(ids) == len(mask)
        split = mask.index(1)
        assert mask == [0] * split + [1] * (len(ids) - split)
        found.append((tokenizer.decode(ids[:split]), tokenizer.decode(ids[split:])))
    assert not len(quarantine), list(quarantine)
    return found


@pytest.mark.parametrize(
    ("row", "read", "written"),
    [
        ({"messages": [USER, YES], "system": "short"}, "system\nshort", "yes"),
        ({"prompt": "weather?", "completion": "yes", "system": "short"}, "system\nshort", "yes"),
        ({"prompt": [USER], "completion": [YES], "tools": [LOOK]}, "tools look", "yes"),
        ({"messages": [USER, YES], "tools": json.dumps([LOOK])}, "tools look", "yes"),
        ({"messages": [USER, CALLS]}, "weather?", 'call {"days": 2}'),
        ({"messages": [USER, CALLS, {"role": "tool", "content": "rain"}, YES]}, "tool\nrain", "yes"),
        ({"messages": [USER, {**YES, "reasoning_content": "hm"}]}, "weather?", "think hm yes"),
        ({"prompt": [USER], "chosen": [CALLS], "rejected": [YES]}, "weather?", 'call {"days": 2}'),
        (
            {"prompt": "weather?", "chosen": "yes", "rejected": "no", "system": "short"},
            "system\nshort",
            "yes",
        ),
    ],
)
def test_what_a_row_says_besides_reaches_the_template(row: dict[str, Any], read: str, written: str) -> None:
    [(before, trained)] = parts_of([row])
    assert read.replace(" ", "") in before.replace(" ", "")
    assert written.replace(" ", "") in trained.replace(" ", "")
    if "tool_calls" in str(row.get("messages", [])[1:2]) and len(row["messages"]) > 2:
        assert "call" in before


def test_settings_of_the_template_come_from_the_argument_and_a_row_stands_over_it() -> None:
    rows = [
        {"messages": [USER, YES]},
        {"messages": [USER, YES], "chat_template_kwargs": {"loud": False}},
    ]
    first, second = parts_of(rows, template_kwargs={"loud": True})
    assert ("!" in "".join(first), "!" in "".join(second)) == (True, False)


@pytest.mark.parametrize("style", STYLES)
def test_a_row_without_any_becomes_what_trl_makes_of_it(style: str) -> None:
    tokenizer = make_tokenizer(style, chat_template=CHATML)
    rows = [
        {"messages": [USER, YES, USER, {"role": "assistant", "content": "It's 12 345!\n\nno"}]},
        {"prompt": "Tell me a story.", "completion": " Once upon a time"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ]
    examples, _ = to_sft_examples(rows, layout="prompt_completion")
    own = tokenize_examples(examples, tokenizer)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=CHATML, completion_only_loss=True)
    args = SFTConfig(use_cpu=True, bf16=False, max_length=None)
    theirs = SFTTrainer._prepare_dataset(
        trainer, examples.remove_columns("row"), tokenizer, args, False, None, "train"
    )
    assert own["input_ids"][:] == theirs["input_ids"][:]
    labels = [
        [token if scored else -100 for token, scored in zip(*both, strict=True)]
        for both in zip(own["input_ids"], own["completion_mask"], strict=True)
    ]
    assert labels == theirs["labels"][:]


@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        ({"messages": [USER, CALLS]}, CHATML, "template_without_field"),
        ({"messages": [USER, YES], "tools": [LOOK]}, CHATML, "template_without_field"),
        ({"messages": [USER, {**YES, "reasoning_content": "hm"}]}, CHATML, "template_without_field"),
        (
            {"messages": [USER, YES], "system": "short"},
            CHATML + "{{ raise_exception('no') }}",
            "template_error",
        ),
    ],
)
def test_a_row_that_the_template_cannot_write_whole_is_set_aside(
    row: dict[str, Any], template: str, reason: str
) -> None:
    examples, _ = to_sft_examples([row], layout="prompt_completion")
    quarantine = Quarantine("rows")
    with pytest.raises(DataError, match=reason):
        tokenize_examples(examples, make_tokenizer(chat_template=template), quarantine=quarantine)
    assert quarantine.counts() == {reason: 1}


@pytest.mark.parametrize("layout", ["messages", "text"])
def test_layouts_without_a_place_for_it_set_the_row_aside(layout: str) -> None:
    plain = {"prompt": "a?", "completion": "b"}
    row = {**plain, "tools": [LOOK]}
    examples, quarantine = to_sft_examples([plain, row], layout=layout)
    assert len(examples) == 1
    assert quarantine.counts() == {"needs_template": 1}


def test_whole_rows_come_as_ids_where_any_has_more_than_messages() -> None:
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    plain = {"messages": [USER, YES]}
    assert build_sft_dataset([plain], tokenizer).column_names == ["prompt", "completion"]
    found = build_sft_dataset([plain, {**plain, "tools": [LOOK]}], tokenizer)
    assert found.column_names == ["input_ids", "completion_mask"]


def test_what_nothing_reads_is_named_and_stands_in_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"messages": [USER | {"content": f"{n}?"}, {**YES, "weight": 1}], "source": "forum", "tools": [LOOK]}
        for n in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        found = prepare_sft(str(path), tokenizer, val_ratio=0.25, template_kwargs={"loud": True})
    assert "nothing reads source (8 rows), messages.weight (8 rows)" in caplog.text
    assert found.report["sources"][0]["unused"] == {"messages.weight": 8, "source": 8}
    assert found.report["settings"]["template_kwargs"] == {"loud": True}
    assert found.validation is not None
    assert len(found.train) + len(found.validation) == 8
    for part in (found.train, found.validation):
        assert part.column_names == ["input_ids", "completion_mask"]
        assert all("!" in tokenizer.decode(ids) for ids in part["input_ids"])


def test_settings_of_a_template_need_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER, YES]}) + "\n")
    with pytest.raises(DataError, match="no chat template"):
        prepare_sft(str(path), make_tokenizer(), template_kwargs={"loud": True})
