"""Places of a text among its tokens: by bytes, by offsets and by prefixes alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_dpo.data.turns.places import _BYTES, TokenPlaces
from helpers_tokenizers import STYLES, make_tokenizer

TEXTS = st.text("ab 1\n\u00e9\u5929\U0001f642<|>", max_size=20) | st.sampled_from(
    ["<|im_end|>a</s> b", "the sky is"]
)


def test_the_byte_alphabet_is_that_of_byte_level_vocabularies():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(_BYTES) == sorted(ByteLevel.alphabet())
    assert sorted(_BYTES.values()) == list(range(256))
    assert (_BYTES["a"], _BYTES["\u0120"], _BYTES["\u010a"]) == (ord("a"), ord(" "), ord("\n"))


@settings(deadline=None, max_examples=120)
@given(text=TEXTS, style=st.sampled_from(STYLES), bos=st.booleans(), data=st.data())
def test_bytes_and_offsets_tell_the_same_places(text, style, bos, data):
    tokenizer = make_tokenizer(style, bos=bos)
    ids = tokenizer(text)["input_ids"]
    borders = data.draw(st.lists(st.integers(0, len(text)), max_size=4).map(sorted))
    places = TokenPlaces(tokenizer, add_special_tokens=True)
    by_bytes, by_offsets = places._by_bytes(text, ids, borders), places._by_offsets(text, ids, borders)
    is_spelled = tokenizer.decode(ids) == text and not bos and "space" not in style
    assert (by_bytes is not None) >= is_spelled
    if by_bytes is not None:
        # An offset names whole characters: within one, a token of its first bytes ends where the character does.
        wide = [any(ord(character) > 127 for character in text)] * len(borders)
        for one, other, may_differ in zip(by_bytes, by_offsets, wide, strict=True):
            assert one == other or may_differ
    if "space" in style:  # These decode to other blanks than were there.
        return
    # Every token that ends at or before the border, and none that ends behind it.
    for border, place in zip(borders, places(text, ids, borders), strict=True):
        before = tokenizer.decode(ids[:place], skip_special_tokens=False).removeprefix("<s>").strip()
        assert text[:border].strip().startswith(before) or "\ufffd" in before


@pytest.mark.parametrize("style", ["gpt2", "llama3", "qwen2"])
def test_a_token_across_a_border_belongs_to_what_follows(style):
    tokenizer = make_tokenizer(style)
    ids = tokenizer("the capital")["input_ids"]
    places = TokenPlaces(tokenizer, add_special_tokens=True)
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    for border in range(12):
        assert places("the capital", ids, [border]) == [sum(end <= border for end in ends)]
