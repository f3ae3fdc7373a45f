"""Where in a text its tokens end, so that a place between two characters becomes a place between two tokens.

A byte-level tokenizer's tokens spell out their bytes: joined, they must be the text's, and then their lengths are all
that is needed. Others are asked for their offsets, which means tokenising the text once more; those that have none
are given the text up to each place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in byte-level vocabularies (GPT-2 and all after it).

    Bytes that are drawn stand for themselves, the others for the characters from U+0100 on, in order.
    """
    drawn = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in drawn]
    shown = {chr(byte): byte for byte in drawn}
    return shown | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTES: Final = _byte_alphabet()


class TokenPlaces:
    """Finds places of a text among its tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
        add_special_tokens: Whether it added its own to the tokens.
    """

    def __init__(self, tokenizer: Any, *, add_special_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.add_special_tokens = add_special_tokens
        self._spelled: dict[int, bytes | None] = {}
        self._added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})

    def __call__(self, text: str, ids: Sequence[int], borders: Sequence[int]) -> list[int]:
        """Return for each border how many tokens end at it or before.

        Args:
            text: The text.
            ids: Its tokens.
            borders: Places in the text, in characters.
        """
        found = self._by_bytes(text, ids, borders)
        if found is None:
            found = self._by_offsets(text, ids, borders)
        if found is None:
            parts = (self._encode(text[:border])["input_ids"] for border in borders)
            found = [_common_length(part, ids) for part in parts]
        return found

    def _by_bytes(self, text: str, ids: Sequence[int], borders: Sequence[int]) -> list[int] | None:
        spelled = [self._bytes(token) for token in ids]
        # None of what the tokenizer adds or changes stands in the text: then this is not its spelling.
        if None in spelled or b"".join(spelled) != text.encode():  # type: ignore[arg-type]
            return None
        ends = list(accumulate(len(part) for part in spelled if part is not None))
        return [bisect_right(ends, len(text[:border].encode())) for border in borders]

    def _bytes(self, token: int) -> bytes | None:
        if token not in self._spelled:
            added = self._added.get(token)
            name = added.content if added is not None else self.tokenizer.convert_ids_to_tokens(token)
            if added is not None:
                self._spelled[token] = str(name).encode()
            elif isinstance(name, str) and all(character in _BYTES for character in name):
                self._spelled[token] = bytes(_BYTES[character] for character in name)
            else:
                self._spelled[token] = None
        return self._spelled[token]

    def _by_offsets(self, text: str, ids: Sequence[int], borders: Sequence[int]) -> list[int] | None:
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        encoded = self._encode(text, return_offsets_mapping=True)
        if list(encoded["input_ids"]) != list(ids):
            return None
        ends = [end for _, end in encoded["offset_mapping"]]
        # Tokens that the tokenizer adds have no place in the text, and none stands between two others.
        return [next((i for i, end in enumerate(ends) if end > border), len(ends)) for border in borders]

    def _encode(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=self.add_special_tokens, **options)


def _common_length(ids: Sequence[int], others: Sequence[int]) -> int:
    shorter = min(len(ids), len(others))
    return next((i for i in range(shorter) if ids[i] != others[i]), shorter)
