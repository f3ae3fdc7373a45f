"""Supervised examples: what precedes the answer, the answer, and the loss mask TRL makes of them."""

import logging
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.sft.rows import read_example
from dynamic_dpo.data.sft_dataset import build_sft_dataset, to_sft_examples
from dynamic_dpo.errors import DataError
from helpers_tokenizers import CHATML, make_tokenizer

USER = {"role": "user", "content": "Q"}
YES = {"role": "assistant", "content": "yes"}
HH = {
    "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: Q\n\nAssistant: yes",
    "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: Q\n\nAssistant: no",
}
TURNS = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, USER]


def test_hh_rows_become_whole_conversations():
    assert build_sft_dataset([HH])[:] == {"messages": [[*TURNS, YES]]}


def test_with_a_chat_tokenizer_the_answer_stands_apart():
    dataset = build_sft_dataset([HH], make_tokenizer(chat_template=CHATML))
    assert dataset[:] == {"prompt": [TURNS], "completion": [[YES]]}


def test_with_a_plain_tokenizer_the_tags_are_kept():
    dataset = build_sft_dataset(Dataset.from_list([HH]), make_tokenizer())
    assert dataset[0] == {"prompt": HH["chosen"].removesuffix(" yes"), "completion": " yes"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, YES]},
        {"messages": [USER, YES, {"role": "user", "content": "thanks"}]},
        {"prompt": [USER], "completion": [YES]},
        {"prompt": [USER], "completion": "yes"},
        {"prompt": "Q", "completion": " yes"},
        {"prompt": "Q", "chosen": " yes"},
        {"prompt": [USER], "chosen": [YES], "rejected": None},
        {"prompt": "Q", "chosen": [USER, YES], "rejected": [USER, YES]},
        {"chosen": [USER, YES], "rejected": [USER]},
        {"chosen": "Q yes", "rejected": "Q no"},
        {"prompt_messages": [USER], "chosen": "yes", "rejected": "no"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: yes"},
    ],
)
def test_every_shape_gives_the_same_example(row):
    assert read_example(row, as_messages=True) == ([USER], [YES])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not_an_object"),
        ({"messages": "text"}, "bad_message"),
        ({"messages": [USER, YES], "images": ["cat.png"]}, "has_images"),
        ({"messages": [USER | {"content": [{"type": "image"}]}, YES]}, "has_images"),
        ({"messages": [USER]}, "answer_not_assistant"),
        ({"messages": [YES]}, "empty_prompt"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty_chosen"),
        ({"prompt": "Q", "completion": ""}, "empty_chosen"),
        ({"prompt": "", "completion": "A"}, "empty_prompt"),
        ({"completion": "A"}, "missing_field"),
        ({"question": "Q"}, "missing_field"),
        ({"chosen": "\n\nAssistant: yes"}, "empty_prompt"),
        ({"prompt": "Q", "completion": 5}, "not_text"),
    ],
)
def test_bad_rows_have_their_reason(row, reason):
    with pytest.raises(BadRow) as caught:
        read_example(row, as_messages=True)
    assert caught.value.reason == reason


def test_conversations_need_a_template():
    with pytest.raises(DataError, match="needs a tokenizer with a chat template"):
        build_sft_dataset([{"messages": [USER, YES]}], make_tokenizer())


def test_bad_rows_are_logged_and_counted(caplog):
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        assert len(build_sft_dataset([HH, {"chosen": ""}, HH])) == 2
    assert "1 of 3 rows" in caplog.text
    examples, quarantine = to_sft_examples([HH, 5, HH], layout="messages")
    assert examples["row"][:] == [0, 2]
    assert [entry.row for entry in quarantine] == [1]


def test_no_rows_are_an_error():
    with pytest.raises(DataError, match="no rows"):
        build_sft_dataset([])


@pytest.mark.parametrize("template", [None, CHATML])
def test_trl_trains_on_the_completion_only(template):
    tokenizer = make_tokenizer(chat_template=template)
    dataset = build_sft_dataset([HH], tokenizer)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=template, completion_only_loss=True)
    args = SFTConfig(use_cpu=True, bf16=False, max_length=None)
    row = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, False, None, "train")[0]
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(trained).strip() in ("yes</s>", "yes<|im_end|>")
