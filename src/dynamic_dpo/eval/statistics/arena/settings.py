"""The settings of Arena-Hard's score."""

from __future__ import annotations

from dataclasses import dataclass

from dynamic_dpo.eval.statistics.arena.battles import STRONG_WEIGHT
from dynamic_dpo.eval.statistics.arena.style import MarkdownUnit
from dynamic_dpo.utils.settings import check_settings, documented, setting


@documented()
@dataclass(frozen=True)
class ArenaSettings:
    """Whether Arena-Hard's score is computed beside the win rates, and how."""

    enabled: bool = setting(
        False,
        "Compute Arena-Hard's score too: strong verdicts count more, and style is taken out.",
        key="statistics.arena_hard.enabled",
    )
    strong_weight: int = setting(
        STRONG_WEIGHT,
        "How often a strong verdict ([[A>>B]]) counts.",
        key="statistics.arena_hard.strong_weight",
        ge=1,
    )
    markdown: MarkdownUnit = setting(
        "density",
        "How Markdown is compared: density, per token, as Arena-Hard 2.0 does; count, as version 0.1 does.",
        key="statistics.arena_hard.markdown",
    )
    centred: bool = setting(
        False,
        "Set features of style to 0 at their mean over the table, as Arena-Hard 2.0's own summary does, and not "
        "where both outputs are alike.",
        key="statistics.arena_hard.centred",
    )

    def __post_init__(self) -> None:
        check_settings(self)
