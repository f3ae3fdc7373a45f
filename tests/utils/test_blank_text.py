"""What is drawn as nothing is blank; what is drawn is not."""

import sys
import unicodedata

import pytest

from dynamic_dpo.utils.blank_text import is_blank

# Marks that Unicode calls format characters and draws: signs around Arabic and Syriac numbers, Egyptian quadrats.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}


@pytest.mark.parametrize(
    "text",
    ["", " \t\n\u3000", "\u200b", "\ufeff", "\u00ad", "\u202e\u202c", "\u2066\u2069", "\u2060", "\u3164", "\u115f",
     "\x00", "\u2800", "\ufe0f", "\U000e0041", " \u200b\n\ufeff "],
)  # fmt: skip
def test_text_of_invisible_characters_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", ".", "天", "🙂", "e\u0301", "\ufeff\n0"])
def test_text_with_a_character_that_is_drawn_is_not(text: str) -> None:
    assert not is_blank(text)


def test_all_controls_formats_and_spaces_are_blank_and_no_letter_digit_or_sign() -> None:
    fillers = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))
        if kind in ("Cc", "Cf", "Zs", "Zl", "Zp") and code not in DRAWN:
            assert is_blank(chr(code)), hex(code)
        elif kind[0] in "LNPS" and code not in fillers:
            assert not is_blank(chr(code)), hex(code)
