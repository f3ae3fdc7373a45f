"""HH rows, judged rollouts and their rendering: the promised names."""

import json
import logging

import pytest
from datasets import Dataset

from dynamic_dpo.data.hh_dataset import (
    apply_chat_template_to_dataset,
    build_HH_dataset,
    build_rollout_dataset,
    convert_to_triples,
    load_generated_dataset_from_config,
    split_prompt_and_response,
    strip_one_leading_newline,
)
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.templates import LLAMA3_CHAT_TEMPLATE
from helpers_tokenizers import CHATML, make_tokenizer

PROMPT = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
HH_ROW = {"chosen": PROMPT + " good", "rejected": PROMPT + " bad"}
ROLLOUT = {
    "prompt_messages": [{"role": "user", "content": "Hi"}],
    "chosen": "Hello",
    "rejected": "No",
    "metadata": {"judge": "x", "scores": [1, 2]},
}


@pytest.mark.parametrize(
    ("text", "stripped"),
    [("\nab", "ab"), ("\n\nab", "\nab"), ("\r\nab", "ab"), (" ab", " ab"), ("", ""), ("a\n", "a\n")],
)
def test_at_most_one_leading_newline_is_stripped(text, stripped):
    assert strip_one_leading_newline(text) == stripped


def test_transcript_is_cut_at_its_last_assistant_tag():
    assert split_prompt_and_response(PROMPT + " good") == (PROMPT, " good")


def test_windows_line_ends_are_normalised_before_the_cut():
    assert split_prompt_and_response("\r\n\r\nHuman: a\r\n\r\nAssistant:\r\nb\r\nc") == (
        "\n\nHuman: a\n\nAssistant:",
        "b\nc",
    )


def test_transcript_without_assistant_tag_is_a_value_error():
    with pytest.raises(ValueError, match="Assistant"):
        split_prompt_and_response("\n\nHuman: a")


def test_triple_holds_prompt_and_both_answers():
    assert convert_to_triples(**{f"{k}_text": v for k, v in HH_ROW.items()}) == {
        "prompt": PROMPT,
        "chosen": " good",
        "rejected": " bad",
    }


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (PROMPT + " good", PROMPT.replace("c", "C") + " bad"),
        (PROMPT + " ", PROMPT + " bad"),
        (PROMPT + " good", PROMPT + "\n"),
        ("\n\nAssistant: good", "\n\nAssistant: bad"),
        ("good", "bad"),
    ],
    ids=["other prompt", "blank chosen", "blank rejected", "no human turn", "no tags"],
)
def test_rows_that_give_no_pair_are_none(chosen, rejected):
    assert convert_to_triples(chosen, rejected) is None


def test_hh_dataset_keeps_good_rows_in_order_and_logs_the_others(caplog):
    rows = [HH_ROW, {"chosen": "no tags", "rejected": "x"}, {"chosen": 3, "rejected": "x"}, HH_ROW]
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        dataset = build_HH_dataset(rows)
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert dataset["chosen"][:] == [" good", " good"]
    assert "2 of 4 rows (50.0%) quarantined" in caplog.text
    assert "no_assistant_turn 1" in caplog.text
    assert "not_text 1" in caplog.text


def test_hh_dataset_is_built_from_a_dataset_too():
    assert build_HH_dataset(Dataset.from_list([HH_ROW]))[0]["prompt"] == PROMPT


def test_hh_dataset_without_a_usable_row_is_an_error():
    with pytest.raises(DataError, match="no_assistant_turn"):
        build_HH_dataset([{"chosen": "a", "rejected": "b"}])


def test_rollouts_become_conversations():
    assert build_rollout_dataset([ROLLOUT])[0] == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "assistant", "content": "No"}],
    }


def test_rollout_answers_may_be_messages():
    row = ROLLOUT | {"chosen": [{"role": "assistant", "content": "Hello"}]}
    assert build_rollout_dataset([row])[:] == build_rollout_dataset([ROLLOUT])[:]


class Section:
    def __init__(self, **values):
        vars(self).update(values)


def test_generated_dataset_is_found_by_mapping_object_or_output_folder(tmp_path):
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(ROLLOUT) + "\n" for _ in range(10)))
    configs = [
        {"dataset": {"dataset_name": str(file), "subset": "train[:40%]"}},
        Section(dataset=Section(dataset_name=file, subset="train[:4]")),
        {"dataset": {"subset": "train[-4:]"}, "rollout": {"output_dir": tmp_path}},
    ]
    assert [len(load_generated_dataset_from_config(config)) for config in configs] == [4, 4, 4]


def test_configuration_that_names_no_rollouts_is_an_error():
    with pytest.raises(DataError, match=r"rollout\.output_dir"):
        load_generated_dataset_from_config({"dataset": {}})


def test_rendered_answers_continue_the_rendered_prompt_and_end_at_the_stop_token():
    tokenizer = make_tokenizer(chat_template=CHATML)
    dataset = apply_chat_template_to_dataset(build_HH_dataset([HH_ROW]), tokenizer)
    assert dataset[0] == {
        "prompt": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
        "chosen": "good<|im_end|>",
        "rejected": "bad<|im_end|>",
    }


def test_rendering_leaves_out_a_bos_that_the_tokenizer_will_add():
    tokenizer = make_tokenizer(bos=True, chat_template=LLAMA3_CHAT_TEMPLATE)
    prompt = apply_chat_template_to_dataset(build_rollout_dataset([ROLLOUT]), tokenizer)[0]["prompt"]
    assert prompt.startswith("<|start_header_id|>user")
    assert tokenizer(prompt)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_rendering_leaves_out_refused_rows_and_says_so(caplog):
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('refused') }}{% endif %}" + CHATML
    rows = [ROLLOUT, ROLLOUT | {"prompt_messages": [{"role": "user", "content": "no"}]}, ROLLOUT]
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        dataset = apply_chat_template_to_dataset(
            build_rollout_dataset(rows), make_tokenizer(chat_template=template)
        )
    assert len(dataset) == 2
    assert "template_error 1" in caplog.text


def test_rendering_needs_a_template():
    with pytest.raises(DataError, match=r"tokenizer\.chat_template"):
        apply_chat_template_to_dataset(build_rollout_dataset([ROLLOUT]), make_tokenizer())


def test_rendering_with_a_template_that_hides_the_prompt_is_an_error():
    template = "{{ loop_count }}{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="template_not_prefix"):
        apply_chat_template_to_dataset(
            build_rollout_dataset([ROLLOUT]), make_tokenizer(chat_template=template)
        )
