"""Tokenising a pair's texts once: exactly what the tokenizer gives for each text alone."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from dynamic_dpo.data.encode import EncodedTexts, PairEncoder, _plain_backend, splits_at_newlines
from helpers_tokenizers import CORPUS, STYLES, make_tokenizer

EXACT = {"gpt2": True, "gpt2-digits": True, "llama3": True, "qwen2": True}

WORDS = ["Human:", "Assistant:", "the", "user", "12", "3", "'s", "...", "!", "<"]
BLANKS = ["\n\n", "\n", " ", "  ", "\r\n", "\t", "\u00a0"]
MARKS = ["é", "e\u0301", "\u0301", "天空", "🙂", "<|im_start|>", "<|im_end|>\n"]
pieces = st.sampled_from([*WORDS, *BLANKS, *MARKS])
texts = st.lists(pieces, max_size=10).map("".join)


@pytest.mark.parametrize("style", STYLES)
def test_only_known_ways_of_splitting_are_cut(style):
    assert splits_at_newlines(make_tokenizer(style)) is EXACT.get(style, False)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=150, deadline=None)
@given(texts, texts, texts, st.booleans(), st.booleans())
@example("\n\nHuman: a\n\nAssistant:", " yes", "!\n\nno", True, False)
@example("a.\n\nAssistant:", "'s 12", "\u0301", False, True)
@example("a\n\n1", "23", "x", True, True)
def test_ids_are_those_of_each_text_alone(style, prompt, chosen, rejected, bos, special):
    tokenizer = make_tokenizer(style, bos=bos)
    triple = (prompt, prompt + chosen, prompt + rejected)
    expected = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in triple]
    assert PairEncoder(tokenizer, add_special_tokens=special)([triple]) == [EncodedTexts(*expected)]


def test_batch_of_different_prompts_keeps_its_order():
    tokenizer = make_tokenizer()
    triples = [(p, p + "yes", p + "no") for p in ("a\nb:", "no line", "\n\nHuman: c\n\nAssistant:", "")]
    expected = [EncodedTexts(*(tokenizer(text)["input_ids"] for text in triple)) for triple in triples]
    assert PairEncoder(tokenizer, add_special_tokens=True)(triples) == expected


def test_conversation_that_does_not_begin_with_its_prompt_is_tokenised_in_full():
    tokenizer = make_tokenizer()
    triple = ("a\nb:", "a\nc yes", "a\nb: no")
    expected = EncodedTexts(*(tokenizer(text)["input_ids"] for text in triple))
    assert PairEncoder(tokenizer, add_special_tokens=True)([triple]) == [expected]


def test_shared_prompt_is_tokenised_once(monkeypatch):
    tokenizer = make_tokenizer()
    seen = []

    def count(texts, **options):
        seen.extend(texts)
        return tokenizer(texts, **options)

    encoder = PairEncoder(tokenizer, add_special_tokens=True)
    monkeypatch.setattr(encoder, "tokenizer", count)
    prompt = "\n\nHuman: " + "long " * 50 + "\n\nAssistant:"
    encoder([(prompt, prompt + " yes", prompt + " no")] * 2)
    assert seen == [prompt, "Assistant:", prompt] or seen.count(prompt) == 2
    assert [text for text in seen if text != prompt] == [
        "Assistant:",
        *["Assistant: yes", "Assistant: no"] * 2,
    ]


def test_added_token_across_a_newline_forbids_cutting():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("\nAssistant")])
    assert not splits_at_newlines(tokenizer)


def test_tokenizer_without_fast_backend_is_not_cut():
    assert not splits_at_newlines(object())


def test_cache_of_prompt_ends_does_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr("dynamic_dpo.data.encode._MAX_CACHED_ANCHORS", 3)
    tokenizer = make_tokenizer()
    encoder = PairEncoder(tokenizer, add_special_tokens=True)
    triples = [(f"q\n{i}:", f"q\n{i}: yes", f"q\n{i}: no") for i in range(10)]
    assert encoder(triples) == [
        EncodedTexts(*(tokenizer(t)["input_ids"] for t in triple)) for triple in triples
    ]
    assert len(encoder._anchors) <= 3


class OwnCall(PreTrainedTokenizerFast):
    """A tokenizer that does something of its own when it is called."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_the_backend_is_used_alone_only_where_a_call_means_no_more():
    stock = make_tokenizer("llama3", bos=True)
    assert _plain_backend(stock) is not None
    assert _plain_backend(OwnCall(tokenizer_object=stock.backend_tokenizer)) is None
    padded, cut, split = (make_tokenizer("llama3") for _ in range(3))
    padded.backend_tokenizer.enable_padding(length=8)
    cut.backend_tokenizer.enable_truncation(4)
    split.split_special_tokens = True
    assert [_plain_backend(tokenizer) for tokenizer in (padded, cut, split, object())] == [None] * 4


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_the_backend_alone_gives_the_ids_of_a_call(style, bos):
    tokenizer = make_tokenizer(style, bos=bos)
    texts = [*CORPUS, "", " ", "\n\n", "<s></s><|im_end|>", "é\u0301👩‍👩‍👧", "\ufeffa\x00b", "a" * 3000]
    for special in (False, True):
        ids = PairEncoder(tokenizer, add_special_tokens=special)._ids(texts, special)
        assert ids == tokenizer(texts, add_special_tokens=special)["input_ids"]
