"""What a preference pair's token ids are: for plain text, for conversations, and for ids that are given.

Each reader takes a batch of pairs and gives whole, untruncated ids with the boundary between prompt and answers
found and the answers closed. `tokenize` cuts them to length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, NamedTuple

from dynamic_dpo.data.encode import EncodedTexts, PairEncoder
from dynamic_dpo.data.pairing import Pair
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.render import RenderedPair, render_pairs, require_chat_template
from dynamic_dpo.data.truncate import TokenPair
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.templates import stop_token_ids

# A generation prompt may end in a few tokens that a finished conversation lacks (an empty thought block); a
# template that rewrites the prompt itself differs in more.
_MAX_TEMPLATE_SHIFT: Final = 8


class CutPair(NamedTuple):
    """Whole ids, and how many tokens the end of the prompt lost at the boundary."""

    pair: TokenPair
    num_lost: int


class PairReader(ABC):
    """Turns pairs into whole token ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stop_token_ids(tokenizer))

    @abstractmethod
    def encode(self, pairs: list[Pair]) -> list[EncodedTexts | BadRow]:
        """Return the ids of each prompt alone and of the two whole sequences, a batch at a time."""

    @abstractmethod
    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Cut the sequences where the answers begin and close the answers.

        Raises:
            BadRow: If there is no prompt or no answer in them.
        """


class IdReader(PairReader):
    """Pairs that are token ids already: taken as they are."""

    def encode(self, pairs: list[Pair]) -> list[EncodedTexts | BadRow]:
        """Return the parts themselves; nothing is joined."""
        return [EncodedTexts(*pair) for pair in pairs]

    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Check that no part is empty."""
        for name, ids in zip(Pair._fields, encoded, strict=True):
            if not ids:
                raise BadRow(f"empty_{name}", f"{name}_ids is empty")
        return CutPair(TokenPair(*encoded), 0)


class TextReader(PairReader):
    """Pairs of plain text.

    Raises:
        DataError: If the tokenizer has no eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.eos = require_eos(tokenizer)
        self.encoder = PairEncoder(tokenizer, add_special_tokens=True)

    def encode(self, pairs: list[Pair]) -> list[EncodedTexts | BadRow]:
        """Tokenise prompt, prompt + chosen and prompt + rejected."""
        texts = [(prompt, prompt + chosen, prompt + rejected) for prompt, chosen, rejected in pairs]
        return list(self.encoder(texts))

    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Cut, and add eos where an answer does not end in a stop token."""
        bos = self.tokenizer.bos_token_id
        encoded = EncodedTexts(*(_without_double(bos, ids) for ids in encoded))
        if encoded.prompt[-1:] == [self.eos] and encoded.chosen[: len(encoded.prompt)] != encoded.prompt:
            # A tokenizer that closes every text by itself has closed the prompt too.
            encoded = encoded._replace(prompt=encoded.prompt[:-1])
        pair, num_lost = _cut(encoded)
        if not pair.prompt:
            raise BadRow("empty_prompt", "prompt and answers have no token of the prompt in common")
        return CutPair(TokenPair(pair.prompt, self._close(pair.chosen), self._close(pair.rejected)), num_lost)

    def _close(self, completion: list[int]) -> list[int]:
        # Text that a template rendered earlier ends in the template's stop token, which may not be eos.
        return completion if completion and completion[-1] in self.stops else [*completion, self.eos]


class MessageReader(PairReader):
    """Pairs of conversations.

    Raises:
        DataError: If the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        require_chat_template(tokenizer)
        self.encoder = PairEncoder(tokenizer, add_special_tokens=False)
        self._blank_tokens: dict[int, bool] = {}

    def encode(self, pairs: list[Pair]) -> list[EncodedTexts | BadRow]:
        """Render and tokenise; the template's text holds its special tokens, none are added."""
        rendered = render_pairs(self.tokenizer, pairs)
        encoded = iter(self.encoder([texts for texts in rendered if isinstance(texts, RenderedPair)]))
        return [texts if isinstance(texts, BadRow) else next(encoded) for texts in rendered]

    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Cut, drop blanks behind the last stop token, and add eos where there is no stop token."""
        pair, num_lost = _cut(encoded)
        if not all(pair) or num_lost > _MAX_TEMPLATE_SHIFT:
            end = len(pair.prompt)
            raise BadRow(
                "template_not_prefix",
                f"after {end} tokens the prompt alone goes on {self._show(encoded.prompt[end:])}, the "
                f"conversation {self._show(encoded.chosen[end:])}",
            )
        return CutPair(TokenPair(pair.prompt, self._close(pair.chosen), self._close(pair.rejected)), num_lost)

    def _close(self, completion: list[int]) -> list[int]:
        # Generation stops at the stop token: what a template writes behind it is never produced.
        end = len(completion)
        while end and completion[end - 1] not in self.stops and self._is_blank(completion[end - 1]):
            end -= 1
        if end and completion[end - 1] in self.stops:
            return completion[:end]
        return [*completion, require_eos(self.tokenizer)]

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank_tokens:
            self._blank_tokens[token] = not self.tokenizer.decode([token]).strip()
        return self._blank_tokens[token]

    def _show(self, ids: list[int]) -> str:
        return repr(self.tokenizer.decode(ids[:20]))


def require_eos(tokenizer: Any) -> int:
    """Return the eos token.

    Raises:
        DataError: If the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no eos token and nothing else ends the "
            "answers, so the model would never learn to stop: set tokenizer.eos_token, or use a chat template "
            "that writes a stop token after each turn"
        )
    return int(tokenizer.eos_token_id)


def _cut(encoded: EncodedTexts) -> CutPair:
    """Cut both sequences after as much of the prompt as both begin with."""
    prompt, chosen, rejected = encoded
    end = min(_common_length(prompt, chosen), _common_length(prompt, rejected))
    return CutPair(TokenPair(prompt[:end], chosen[end:], rejected[end:]), len(prompt) - end)


def _without_double(bos: int | None, ids: list[int]) -> list[int]:
    """Drop a BOS that the tokenizer put before the one which the text already spelled out."""
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _common_length(ids: list[int], others: list[int]) -> int:
    if others[: len(ids)] == ids:
        return len(ids)
    shorter = min(len(ids), len(others))
    return next((i for i in range(shorter) if ids[i] != others[i]), shorter)
