"""What a preference pair's token ids are: for plain text, for conversations, and for ids that are given.

Each reader takes a batch of pairs and gives whole, untruncated ids with the boundary between prompt and answers
found and the answers closed. `tokenize` cuts them to length.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from dynamic_dpo.data.encode import EncodedTexts, PairEncoder
from dynamic_dpo.data.pairing import MASK_FIELDS, TOKEN_FIELDS, MaskedIds, Message, Pair, SampledPair
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.render import (
    RenderedPair,
    as_conversation,
    render_pairs,
    require_chat_template,
    template_of,
)
from dynamic_dpo.data.truncate import TokenPair
from dynamic_dpo.data.turns.endings import Ending, Span, end_of_messages, end_of_text, human_turns
from dynamic_dpo.data.turns.extras import join_extras, template_arguments, unwritten_field
from dynamic_dpo.data.turns.mask import check_answer_tokens, gaps, not_scored, token_spans, with_turn_ends
from dynamic_dpo.data.turns.places import TokenPlaces
from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.templates import stop_token_ids

logger = logging.getLogger("dynamic_dpo")

# A generation prompt may end in a few tokens that a finished conversation lacks (an empty thought block); a
# template that rewrites the prompt itself differs in more.
_MAX_TEMPLATE_SHIFT: Final = 8
_BARE: Final = ("role", "content")


class ReadPair(NamedTuple):
    """The ids of a pair, and whose they are.

    Attributes:
        texts: Ids of the prompt alone and of the two whole sequences.
        foreign: Where in the chosen and in the rejected sequence others speak, within the answer.
        num_dropped_turns: Turns left out that stood behind the answers.
    """

    texts: EncodedTexts
    foreign: tuple[Sequence[Span], Sequence[Span]] = ((), ())
    num_dropped_turns: int = 0


class CutPair(NamedTuple):
    """Whole ids, and how many tokens the end of the prompt lost at the boundary."""

    pair: TokenPair
    num_lost: int


class PairReader(ABC):
    """Turns pairs into whole token ids.

    Attributes:
        columns: Where the parts of a pair stand in a table.
        kind: What a pair is.

    Args:
        tokenizer: A Hugging Face tokenizer.
        answer_tokens: Whether what others say inside and behind an answer counts (``all``, whose ids are those of
            TRL) or not (``assistant``).
    """

    columns: tuple[str, ...] = Pair._fields
    kind: ClassVar[type[Pair] | type[SampledPair] | type[MaskedIds]] = Pair

    def __init__(self, tokenizer: Any, answer_tokens: str = "assistant") -> None:
        check_answer_tokens(answer_tokens)
        self.tokenizer = tokenizer
        self.all_count = answer_tokens == "all"
        self.stops = frozenset(stop_token_ids(tokenizer))
        self._blank_tokens: dict[int, bool] = {}

    @abstractmethod
    def encode(self, pairs: Sequence[Any], extras: Sequence[str] | None = None) -> list[ReadPair | BadRow]:
        """Return the ids of each prompt alone and of the two whole sequences, a batch at a time.

        Of text and ids there is nothing in ``extras``.
        """

    @abstractmethod
    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Cut the sequences where the answers begin and close the answers.

        Raises:
            BadRow: If there is no prompt or no answer in them.
        """

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank_tokens:
            self._blank_tokens[token] = not self.tokenizer.decode([token]).strip()
        return self._blank_tokens[token]


class IdReader(PairReader):
    """Pairs that are token ids already: taken as they are, with the masks of their answers where there are some."""

    kind = MaskedIds

    def __init__(self, tokenizer: Any, answer_tokens: str = "assistant", *, has_masks: bool = False) -> None:
        super().__init__(tokenizer, answer_tokens)
        self.columns = (*TOKEN_FIELDS, *MASK_FIELDS) if has_masks else TOKEN_FIELDS

    def encode(
        self, pairs: Sequence[MaskedIds], extras: Sequence[str] | None = None
    ) -> list[ReadPair | BadRow]:
        """Return the parts themselves; nothing is joined."""
        return [ReadPair(EncodedTexts(*pair[:3]), self._foreign(pair)) for pair in pairs]

    def _foreign(self, pair: MaskedIds) -> tuple[Sequence[Span], Sequence[Span]]:
        if self.all_count:
            return (), ()
        return (
            _moved(not_scored(pair.chosen_mask or ()), len(pair.prompt)),
            _moved(not_scored(pair.rejected_mask or ()), len(pair.prompt)),
        )

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

    def __init__(self, tokenizer: Any, answer_tokens: str = "assistant") -> None:
        super().__init__(tokenizer, answer_tokens)
        self.eos = require_eos(tokenizer)
        self.encoder = PairEncoder(tokenizer, add_special_tokens=True)
        self.places = TokenPlaces(tokenizer, add_special_tokens=True)

    def encode(self, pairs: Sequence[Pair], extras: Sequence[str] | None = None) -> list[ReadPair | BadRow]:
        """Tokenise prompt, prompt + chosen and prompt + rejected."""
        ended = [self._ended(*pair) for pair in pairs]
        texts = [(prompt, prompt + chosen, prompt + rejected) for (prompt, chosen, rejected), *_ in ended]
        return [self._read(each, ids) for each, ids in zip(ended, self.encoder(texts), strict=True)]

    def _ended(self, prompt: str, chosen: str, rejected: str) -> _EndedPair:
        if self.all_count:
            eos = self.tokenizer.eos_token
            closed = (text if text.endswith(eos) else text + eos for text in (chosen, rejected))
            return _EndedPair(Pair(prompt, *closed), 0)
        return _ended(prompt, end_of_text(prompt, chosen), end_of_text(prompt, rejected))

    def _read(self, ended: _EndedPair, ids: EncodedTexts) -> ReadPair:
        (prompt, *answers), num_dropped, _ = ended
        chosen, rejected = (
            self._foreign(prompt, answer, whole) for answer, whole in zip(answers, ids[1:], strict=True)
        )
        bos = self.tokenizer.bos_token_id
        return ReadPair(
            EncodedTexts(*(_without_double(bos, part) for part in ids)), (chosen, rejected), num_dropped
        )

    def _foreign(self, prompt: str, answer: str, ids: list[int]) -> Sequence[Span]:
        """Return where the human speaks within an answer, in tokens of the whole sequence with one BOS."""
        turns = [] if self.all_count else human_turns(prompt, answer)
        if not turns:
            return ()
        in_text = _moved(turns, len(prompt))
        spans = token_spans(self.places, prompt + answer, ids, in_text)
        return _moved(spans, len(_without_double(self.tokenizer.bos_token_id, ids)) - len(ids))

    def finish(self, encoded: EncodedTexts) -> CutPair:
        """Cut, and add eos where an answer does not end in a stop token."""
        if encoded.prompt[-1:] == [self.eos] and encoded.chosen[: len(encoded.prompt)] != encoded.prompt:
            # A tokenizer that closes every text by itself has closed the prompt too.
            encoded = encoded._replace(prompt=encoded.prompt[:-1])
        pair, num_lost = _cut(encoded)
        if not pair.prompt:
            raise BadRow("empty_prompt", "prompt and answers have no token of the prompt in common")
        return CutPair(TokenPair(pair.prompt, self._close(pair.chosen), self._close(pair.rejected)), num_lost)

    def _close(self, completion: list[int]) -> list[int]:
        # Text that a template rendered earlier ends in the template's stop token, which may not be eos.
        is_closed = self.all_count or (completion and completion[-1] in self.stops)
        return completion if is_closed else [*completion, self.eos]


class MessageReader(PairReader):
    """Pairs of conversations.

    Raises:
        DataError: If the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        answer_tokens: str = "assistant",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer, answer_tokens)
        require_chat_template(tokenizer)
        self.template_kwargs = dict(template_kwargs or {})
        self.encoder = PairEncoder(tokenizer, add_special_tokens=False)
        self.places = TokenPlaces(tokenizer, add_special_tokens=False)

    def encode(self, pairs: Sequence[Any], extras: Sequence[str] | None = None) -> list[ReadPair | BadRow]:
        """Render and tokenise; the template's text holds its special tokens, none are added.

        Args:
            pairs: Pairs of messages with role and content.
            extras: What else the chat template is given, by pair, see `dynamic_dpo.data.turns.extras`.
        """
        joined = [join_extras(*both) for both in zip(pairs, extras or [""] * len(pairs), strict=True)]
        ended = [
            self._ended(pair)._replace(arguments=template_arguments(own, self.template_kwargs))
            for pair, own in joined
        ]
        rendered = self._rendered(ended)
        encoded = iter(self.encoder([texts for texts in rendered if isinstance(texts, RenderedPair)]))
        return [
            texts if isinstance(texts, BadRow) else self._read(each, texts, next(encoded))
            for texts, each in zip(rendered, ended, strict=True)
        ]

    def _rendered(self, ended: Sequence[_EndedPair]) -> list[RenderedPair | BadRow]:
        """Render pairs, those with equal arguments of the template together."""
        found: dict[int, RenderedPair | BadRow] = {}
        groups: dict[str, list[int]] = {}
        for place, (pair, _, arguments) in enumerate(ended):
            messages = (*pair.prompt, *pair.chosen, *pair.rejected)
            is_plain = not arguments and all(len(message) == len(_BARE) for message in messages)
            missing = (
                None
                if is_plain
                else unwritten_field(template_of(self.tokenizer, arguments), messages, arguments)
            )
            if missing is None:
                groups.setdefault(content_hash(arguments) if arguments else "", []).append(place)
            else:
                found[place] = BadRow("template_without_field", f"{missing} in {pair.prompt!r}")
        for places in groups.values():
            pairs = [ended[place].pair for place in places]
            found.update(
                zip(places, render_pairs(self.tokenizer, pairs, ended[places[0]].arguments), strict=True)
            )
        return [found[place] for place in range(len(ended))]

    def _ended(self, pair: Any) -> _EndedPair:
        if self.all_count:
            return _EndedPair(Pair(*pair[:3]), 0)
        return _ended(pair.prompt, end_of_messages(pair.chosen), end_of_messages(pair.rejected))

    def _read(self, ended: _EndedPair, texts: RenderedPair, ids: EncodedTexts) -> ReadPair | BadRow:
        (prompt, *answers), num_dropped, arguments = ended
        try:
            chosen, rejected = (
                self._foreign(prompt, answer, text, whole, arguments)
                for answer, text, whole in zip(answers, texts[1:], ids[1:], strict=True)
            )
        except BadRow as bad:
            return bad
        return ReadPair(ids, (chosen, rejected), num_dropped)

    def _foreign(
        self,
        prompt: list[Message],
        answer: list[Message],
        text: str,
        ids: list[int],
        arguments: Mapping[str, Any],
    ) -> Sequence[Span]:
        """Return what the assistant does not write within an answer, in tokens of the whole sequence."""
        if len(answer) == 1 or self.all_count:
            return ()
        written = as_conversation(self.tokenizer, prompt + answer, text, arguments).written(len(prompt))
        spans = token_spans(self.places, text, ids, gaps(written))
        return with_turn_ends(ids, spans, stops=self.stops, is_blank=self._is_blank)

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
        return completion if self.all_count else self._closed(completion)

    def _closed(self, completion: list[int]) -> list[int]:
        # Generation stops at the stop token: what a template writes behind it is never produced.
        end = len(completion)
        while end and completion[end - 1] not in self.stops and self._is_blank(completion[end - 1]):
            end -= 1
        if end and completion[end - 1] in self.stops:
            return completion[:end]
        return [*completion, require_eos(self.tokenizer)]

    def _show(self, ids: list[int]) -> str:
        return repr(self.tokenizer.decode(ids[:20]))


class SampledReader(MessageReader):
    """Pairs of conversations whose answers come with the token ids that were sampled.

    A text may be tokenised in another way than it was written, and then a policy would be trained on what it has
    not said. Ids that do not spell their answer, such as those of another tokenizer, are passed over with a warning.
    """

    columns = SampledPair._fields
    kind = SampledPair

    def __init__(
        self,
        tokenizer: Any,
        answer_tokens: str = "assistant",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer, answer_tokens, template_kwargs)
        self._has_warned = False

    def encode(
        self, pairs: Sequence[SampledPair], extras: Sequence[str] | None = None
    ) -> list[ReadPair | BadRow]:
        """Return the rendered prompt, and behind it the answers' own ids and the template's stop token."""
        encoded = super().encode([Pair(*pair[:3]) for pair in pairs], extras)
        return [
            read if isinstance(read, BadRow) else read._replace(texts=self._as_sampled(pair, read.texts))
            for pair, read in zip(pairs, encoded, strict=True)
        ]

    def _as_sampled(self, pair: SampledPair, texts: EncodedTexts) -> EncodedTexts:
        ended = self._ended(pair).pair
        chosen, rejected = (
            self._own(pair.chosen_ids, ended.chosen),
            self._own(pair.rejected_ids, ended.rejected),
        )
        if chosen is None or rejected is None:
            if not self._has_warned:
                logger.warning(
                    "sampled token ids do not spell their answer with this tokenizer, or are missing: such pairs are "
                    "tokenised from their text (the first: %s)",
                    repr(pair.chosen)[:120],
                )
                self._has_warned = True
            return texts
        stop = self._closed(texts.chosen)[-1]
        return EncodedTexts(texts.prompt, [*texts.prompt, *chosen, stop], [*texts.prompt, *rejected, stop])

    def _own(self, ids: list[int] | None, answer: list[dict[str, str]]) -> list[int] | None:
        """Return the ids of an answer without its stop token, if they spell it."""
        if ids is None or len(answer) != 1:
            return None
        own = ids[:-1] if ids[-1:] and ids[-1] in self.stops else ids
        if max(own, default=0) >= len(self.tokenizer):
            return None
        spelled = self.tokenizer.decode(own, clean_up_tokenization_spaces=False)
        return own if spelled == answer[0]["content"] else None


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


class _EndedPair(NamedTuple):
    """A pair up to the ends of its answers, the turns that stood behind them, and the arguments of its template."""

    pair: Pair
    num_dropped: int
    arguments: Mapping[str, Any] = {}


def _moved(spans: Sequence[Span], by: int) -> list[Span]:
    return [Span(start + by, end + by) for start, end in spans]


def _ended(prompt: Any, chosen: Ending, rejected: Ending) -> _EndedPair:
    return _EndedPair(Pair(prompt, chosen.answer, rejected.answer), chosen.num_dropped + rejected.num_dropped)


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
