"""What is in a set of preference pairs, counted in one pass: lengths, repetitions, contradictions, overlaps."""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dynamic_dpo.inspection.overlap import Overlap, PromptIndex
from dynamic_dpo.inspection.texts import PairTexts, without_special_tokens, words

REFUSALS = (
    r"\bI(?:'|’)?m sorry,? but\b",
    r"\bI (?:cannot|can(?:'|’)?t|am (?:not able|unable) to|(?:'|’)m (?:not able|unable) to) "
    r"(?:help|assist|provide|answer|do|comply|engage|support|create|write|give|fulfil)",
    r"\bas an AI\b",
    r"\bI (?:won(?:'|’)t|will not) (?:help|assist|provide|do|write)\b",
)
"""Regular expressions of refusals in English, searched without regard to case."""


@dataclass
class PairFigures:
    """The figures of one part of a set.

    Attributes:
        pairs: Number of pairs.
        prompts: Number of distinct prompts.
        lengths: ``prompt``, ``chosen``, ``rejected`` to the lengths in tokens, in the order of the pairs.
        equal: Rows whose answers are equal but for case, punctuation and white space.
        repeated: Rows whose prompt and answers an earlier one has, as (row, earlier row).
        contradicted: Rows that say the reverse of an earlier one, as (row, earlier row).
        refusals_chosen: Rows whose chosen answer is a refusal.
        refusals_rejected: Rows whose rejected answer is a refusal.
        overlaps: Pairs that a prompt of an evaluation was found in.
    """

    pairs: int = 0
    prompts: int = 0
    lengths: dict[str, list[int]] = field(
        default_factory=lambda: {"prompt": [], "chosen": [], "rejected": []}
    )
    equal: list[int] = field(default_factory=list)
    repeated: list[tuple[int, int]] = field(default_factory=list)
    contradicted: list[tuple[int, int]] = field(default_factory=list)
    refusals_chosen: list[int] = field(default_factory=list)
    refusals_rejected: list[int] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)

    @property
    def gaps(self) -> list[int]:
        """Tokens of the chosen answer less those of the rejected one."""
        return [a - b for a, b in zip(self.lengths["chosen"], self.lengths["rejected"], strict=True)]

    @property
    def longer_chosen(self) -> float:
        """Share of the pairs whose chosen answer is the longer one, those of equal length counted half."""
        if not self.pairs:
            return float("nan")
        return sum((gap > 0) + 0.5 * (gap == 0) for gap in self.gaps) / self.pairs

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types; lengths and gaps as their distribution."""
        kept = {key: value for key, value in asdict(self).items() if key != "lengths"}
        return {
            **kept,
            "overlaps": [overlap._asdict() for overlap in self.overlaps],
            "lengths": {name: described(values) for name, values in self.lengths.items()},
            "length_gap": described(self.gaps),
            "longer_chosen": self.longer_chosen if self.pairs else None,
        }


def described(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, least, quartiles, 95th percentile and greatest of values; ``None`` of none.

    >>> described([1, 2, 3, 4, 5])["median"]
    3
    """
    if not values:
        return None
    if len(values) == 1:
        cuts = [values[0]] * 99
    else:
        cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "mean": statistics.fmean(values),
        "min": min(values),
        "p25": cuts[24],
        "median": statistics.median(values),
        "p75": cuts[74],
        "p95": cuts[94],
        "max": max(values),
    }


class Inspector:
    """Counts the pairs of a set as they come; what is remembered of each is a few hashes, not its text.

    Args:
        tokenizer: The tokenizer that decoded them, whose special tokens are no words.
        refusals: Regular expressions of a refusal.
        evaluation: The prompts of evaluations; ``None`` for none.
    """

    def __init__(
        self, tokenizer: Any, *, refusals: Iterable[str] = REFUSALS, evaluation: PromptIndex | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._refusals = [re.compile(pattern, re.IGNORECASE) for pattern in refusals]
        self._evaluation = evaluation

    def count(self, pairs: Iterable[PairTexts]) -> PairFigures:
        """Return the figures of pairs."""
        found, prompts, seen = PairFigures(), set[bytes](), dict[tuple[bytes, bytes, bytes], int]()
        for pair in pairs:
            found.pairs += 1
            for name, length in zip(
                found.lengths,
                (pair.num_prompt_tokens, pair.num_chosen_tokens, pair.num_rejected_tokens),
                strict=True,
            ):
                found.lengths[name].append(length)
            prompt, chosen, rejected = (
                without_special_tokens(text, self._tokenizer)
                for text in (pair.prompt, pair.chosen, pair.rejected)
            )
            key = (_hash(prompt), _hash(chosen), _hash(rejected))
            prompts.add(key[0])
            if words(chosen) == words(rejected):
                found.equal.append(pair.row)
            if key in seen:
                found.repeated.append((pair.row, seen[key]))
            elif (key[0], key[2], key[1]) in seen and key[1] != key[2]:
                found.contradicted.append((pair.row, seen[key[0], key[2], key[1]]))
            seen.setdefault(key, pair.row)
            if self._is_refusal(chosen):
                found.refusals_chosen.append(pair.row)
            if self._is_refusal(rejected):
                found.refusals_rejected.append(pair.row)
            if self._evaluation is not None:
                overlap = self._overlap(pair.row, (prompt, chosen, rejected))
                if overlap is not None:
                    found.overlaps.append(overlap)
        found.prompts = len(prompts)
        return found

    def _is_refusal(self, text: str) -> bool:
        # It stands at the beginning: later on it may be quoted.
        return any(pattern.search(text[:300]) for pattern in self._refusals)

    def _overlap(self, row: int, texts: Sequence[str]) -> Overlap | None:
        assert self._evaluation is not None
        for text in texts:
            if (found := self._evaluation.find(text)) is not None:
                return Overlap(row, *found)
        return None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=12).digest()
