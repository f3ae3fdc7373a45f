"""Prompts of an evaluation that stand in a training set: found by runs of words that both have in common.

As Brown et al. 2020 (Language Models are Few-Shot Learners, https://arxiv.org/abs/2005.14165, appendix C) look for
them: by n-grams of words, in lower case and without punctuation, those left out that are common phrases. A prompt of
fewer words is found only where all of it stands in a text, since single words are in every text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dynamic_dpo.inspection.texts import words


class Overlap(NamedTuple):
    """A pair that an evaluation's prompt was found in.

    Attributes:
        row: Number of the row that the pair came from.
        prompt: Number of the evaluation's prompt.
        words: The words that both have in common.
    """

    row: int
    prompt: int
    words: str


# A run that so many of the prompts have is a phrase, such as the frame of a task that all of them set.
_COMMON = 3


class PromptIndex:
    """The runs of words of an evaluation's prompts; runs that three of them have or more are phrases, and left out.

    Args:
        prompts: Their texts.
        n: How many words make a run.

    Example:
        >>> index = PromptIndex(["How do I boil an egg without a pot?"], n=5)
        >>> index.find("Tell me: how do I boil an egg, please"), index.find("How do I fry an egg")
        ((0, 'how do i boil an'), None)
    """

    def __init__(self, prompts: Iterable[str], *, n: int = 8) -> None:
        self.n = n
        self._runs: dict[tuple[str, ...], int] = {}
        counts = Counter[tuple[str, ...]]()
        distinct: dict[tuple[str, ...], int] = {}
        for number, text in enumerate(prompts):
            distinct.setdefault(tuple(words(text)), number)
        for found, number in distinct.items():
            for run in {*_runs(found, min(n, len(found)))}:
                self._runs.setdefault(run, number)
                # A whole prompt is no phrase.
                counts[run] += len(run) < len(found)
        for run, count in counts.items():
            if count >= _COMMON:
                del self._runs[run]
        self._lengths = sorted({len(run) for run in self._runs}, reverse=True)

    def find(self, text: str) -> tuple[int, str] | None:
        """Return the number of a prompt that a text has a run of, and the run; ``None`` where there is none.

        A prompt of fewer than n words is found where all of its words stand in the text, in their order and side by
        side, and make up at least half of it.
        """
        found = words(text)
        for size in self._lengths:
            if size < self.n and len(found) > 2 * size:
                continue
            for run in _runs(found, size):
                number = self._runs.get(run)
                if number is not None:
                    return number, " ".join(run)
        return None


def _runs(found: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(found[start : start + size]) for start in range(len(found) - size + 1)) if size else ()
