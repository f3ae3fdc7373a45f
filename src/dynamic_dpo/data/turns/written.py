"""Which characters of a rendered conversation the assistant writes: from the word given to it to its turn's end.

Templates differ, so nothing is assumed about them. A turn is found by what the template itself says of it, and taken
only where that is proven on the text:

1. by ``{% generation %}`` marks, if there is one a turn and it holds what the turn says, without a header in them;
2. else by prefixes: the conversation before the turn, with the generation prompt, and the conversation up to the turn
   are both what the text begins with;
3. where a template writes a turn differently once others follow, by a mark put at the turn's beginning or end:
   without it the rendered text is the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.turns.endings import Span
from dynamic_dpo.utils.blank_text import is_blank

Messages = list[dict[str, Any]]

# Of characters for private use, which no template looks for; that nothing else became of it is verified.
_MARK: Final = "\ue000dynamic-dpo\ue001"

# Characters; what is longer and stands where the word is given is what the turn says.
_LONGEST_HEADER: Final = 24


class Conversation:
    """A rendered conversation and the ways to render others by the same template.

    Args:
        messages: The conversation.
        text: What the template makes of it.
        render: Renders messages, with or without a generation prompt; ``None`` where the template refuses them.
        marked: What the template's own ``{% generation %}`` marks enclose, if it has some.
    """

    def __init__(
        self,
        messages: Messages,
        text: str,
        render: Callable[[Messages, bool], str | None],
        marked: Sequence[Span] = (),
    ) -> None:
        self.messages = messages
        self.text = text
        self.render = render
        self.marked = marked

    def written(self, first: int) -> list[Span]:
        """Return what the assistant writes from the turn at ``first`` on, in one span a turn.

        The first span begins where the text does and the last ends where it does: how an answer begins behind its
        prompt, and how it is closed, is the caller's.

        Raises:
            BadRow: ``turns_not_found`` if a turn cannot be told from its surroundings.
        """
        turns = [i for i in range(first, len(self.messages)) if self.messages[i]["role"] == "assistant"]
        found = self._by_marks(turns) or [
            Span(
                0 if turn == turns[0] else self._start(turn),
                len(self.text) if turn == turns[-1] else self._end(turn),
            )
            for turn in turns
        ]
        borders = [place for span in found for place in span]
        if borders != sorted(borders):
            raise BadRow("turns_not_found", f"turns lie at {found} in {self.text!r}")
        return found

    def _by_marks(self, turns: list[int]) -> list[Span]:
        """Return the marked spans of ``turns``, if it is certain that they are theirs."""
        spans = self.marked[-len(turns) :]
        all_turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        if len(self.marked) != len(all_turns) or not all(
            str(self.messages[turn].get("content") or "").strip() in self.text[slice(*span)]
            for turn, span in zip(turns, spans, strict=True)
        ):
            return []
        # Some marks begin before the header of a turn, which is not written but given.
        starts = [
            0,
            *(self._behind_header(turn, span) for turn, span in zip(turns[1:], spans[1:], strict=True)),
        ]
        ends = [*(span.end for span in spans[:-1]), len(self.text)]
        return [Span(*borders) for borders in zip(starts, ends, strict=True)]

    def _behind_header(self, turn: int, span: Span) -> int:
        try:
            start = self._start(turn)
        except BadRow:
            return span.start
        return start if span.start < start < span.end else span.start

    def _start(self, turn: int) -> int:
        before = self.messages[:turn]
        opened = self.render(before, True)
        if opened is not None and self.text.startswith(opened):
            if self._says_next(turn, len(opened)) or opened != self.render(before, False):
                return len(opened)
            # No generation prompt: a header, if there is one, belongs to what stands before the turn's text.
            marked = self._place_of_mark(turn, at_end=False)
            has_header = marked is not None and not is_blank(self.text[len(opened) : marked])
            return marked if marked is not None and has_header else len(opened)
        return self._certain(self._place_of_mark(turn, at_end=False), turn)

    def _says_next(self, turn: int, place: int) -> bool:
        """Whether what the turn says stands right there; a word or two might as well be a header."""
        said = self.messages[turn].get("content")
        is_long = isinstance(said, str) and len(said.strip()) > _LONGEST_HEADER
        return is_long and self.text[place:].lstrip().startswith(str(said).strip())

    def _end(self, turn: int) -> int:
        closed = self.render(self.messages[: turn + 1], False)
        if closed is not None and self.text.startswith(closed):
            return len(closed)
        return self._certain(self._place_of_mark(turn, at_end=True), turn)

    def _place_of_mark(self, turn: int, *, at_end: bool) -> int | None:
        """Return where a mark at the beginning or the end of what a turn says comes to stand in the text."""
        message = self.messages[turn]
        content = message.get("content")
        has_more = any(value for name, value in message.items() if name not in ("role", "content"))
        if has_more or not isinstance(content, str) or is_blank(content) or _MARK in self.text:
            return None
        # A template that trims what a turn says would keep the blanks before a mark.
        for said in dict.fromkeys((content, content.strip())):
            marked = {**message, "content": said + _MARK if at_end else _MARK + said}
            text = self.render([*self.messages[:turn], marked, *self.messages[turn + 1 :]], False) or ""
            place = text.find(_MARK)
            if place >= 0 and text[:place] + text[place + len(_MARK) :] == self.text:
                return place
        return None

    def _certain(self, place: int | None, turn: int) -> int:
        if place is None:
            raise BadRow("turns_not_found", f"{self.messages[turn]!r} in {self.text!r}")
        return place
