"""How answers become pairs, as a user sets it: which may stand in one, which rule makes them, what is left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.settings import check_settings, documented, setting

RuleName = Literal[
    "auto", "best_worst", "best_mu2sigma", "best_random", "all", "threshold", "with_reference", "strong_weak"
]


@dataclass(frozen=True)
class AnswerFilters:
    """Which answers may stand in no pair.

    Attributes:
        truncated: Leave out answers that were cut off without a stop.
        refusals: Regular expressions, searched without regard to case; an answer that one is found in is left out.

    Raises:
        ConfigError: If an expression is none.
    """

    truncated: bool = True
    refusals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.refusals:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression of a refusal: {error}") from None


@documented()
@dataclass(frozen=True)
class PairingSettings:
    """How pairs are made of a prompt's answers and their scores.

    Raises:
        ConfigError: If a setting is out of its range.
    """

    rule: RuleName = setting(
        "auto",
        "Which answers become a pair; auto: best_mu2sigma for 8 answers a prompt or more, best_worst for fewer, "
        "strong_weak where there is a weak_model.",
    )
    max_pairs: int | None = setting(None, "Most pairs of one prompt; null: all that the rule proposes.", ge=1)
    min_gap: float = setting(
        0.0, "Least difference of the scores of a pair; equal scores never make one.", ge=0
    )
    near_identical: float | None = setting(
        0.9,
        "Share of word triples in common from which two answers are too alike for a pair; null: never.",
        gt=0,
        le=1,
    )
    max_length_ratio: float | None = setting(
        None,
        "Most characters of a pair's longer answer, as a multiple of the shorter one's; null: any.",
        ge=1,
    )
    length_penalty: float = setting(0.0, "Taken off a score for every 100 characters of the answer.", ge=0)
    seed: int = setting(42, "Seed of best_random.", ge=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.rule == "threshold" and not self.min_gap:
            raise ConfigError("pairs.min_gap must be greater than 0 while pairs.rule is threshold, got 0")
