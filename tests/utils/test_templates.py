"""Chat template, HH transcripts, stop tokens."""

from types import SimpleNamespace

import pytest

from dynamic_dpo.utils.templates import LLAMA3_CHAT_TEMPLATE, parse_hh_to_messages, stop_token_ids
from helpers_tokenizers import make_tokenizer

TALK = [
    {"role": "user", "content": " Hi there\n"},
    {"role": "assistant", "content": "Hello."},
]


def render(messages, *, open_turn=False):
    tokenizer = make_tokenizer(bos=True, chat_template=LLAMA3_CHAT_TEMPLATE)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)


def test_llama3_template_writes_headers_and_trimmed_turns():
    assert render(TALK) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    )


def test_llama3_template_opens_the_assistant_turn_once():
    assert render(TALK[:1], open_turn=True) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama3_template_renders_the_prompt_as_a_prefix_of_the_conversation():
    assert render(TALK).startswith(render(TALK[:1], open_turn=True))


def test_llama3_template_inserts_no_system_prompt_and_no_date():
    text = render(TALK)
    assert "system" not in text
    assert "20" not in text


def test_hh_transcript_becomes_alternating_messages():
    text = "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: e"
    assert parse_hh_to_messages(text) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("\n\nHuman: a\n\nAssistant:", [("user", "a")]),
        ("Human: a\r\n\r\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("Be kind.\n\nHuman: a", [("system", "Be kind."), ("user", "a")]),
        ("Just a question?", [("user", "Just a question?")]),
        ("\n\nHuman: a\n\nHuman: b", [("user", "a"), ("user", "b")]),
        ("\n\nHuman: he said\nHuman: no", [("user", "he said\nHuman: no")]),
        ("\n\nHuman: a\n\nAssistant:\n\nHuman: b", [("user", "a"), ("assistant", ""), ("user", "b")]),
        ("  \n", []),
    ],
)
def test_hh_parsing_of_unusual_transcripts(text, messages):
    assert [(m["role"], m["content"]) for m in parse_hh_to_messages(text)] == messages


def test_stop_tokens_are_eos_and_known_turn_ends_of_the_vocabulary():
    assert stop_token_ids(make_tokenizer(eos="</s>")) == [2, 4]  # </s>, <|im_end|>


def test_stop_tokens_of_a_base_model_include_the_turn_end_that_is_not_its_eos():
    assert 4 in stop_token_ids(make_tokenizer(eos=None))


@pytest.mark.parametrize(("declared", "expected"), [(7, [2, 4, 7]), ([7, 9], [2, 4, 7, 9]), (None, [2, 4])])
def test_stop_tokens_take_in_the_generation_configuration(declared, expected):
    assert stop_token_ids(make_tokenizer(), SimpleNamespace(eos_token_id=declared)) == expected


def test_channel_end_is_no_stop_where_the_format_has_a_return_token():
    tokenizer = SimpleNamespace(eos_token_id=1, get_vocab=lambda: {"<|end|>": 0, "<|return|>": 1})
    assert stop_token_ids(tokenizer) == [1]


def test_no_stop_token_at_all_is_an_empty_list():
    assert stop_token_ids(SimpleNamespace(eos_token_id=None, get_vocab=lambda: {"a": 0})) == []
