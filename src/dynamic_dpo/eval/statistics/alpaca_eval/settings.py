"""The settings of AlpacaEval 2's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from dynamic_dpo.utils.settings import check_settings, documented, setting


@documented()
@dataclass(frozen=True)
class AlpacaEvalSettings:
    """Whether AlpacaEval 2's numbers are computed beside the win rates, and from which difficulties."""

    enabled: bool = setting(
        False,
        "Compute AlpacaEval 2's numbers too: the weighted win rate and its length-controlled form.",
        key="statistics.alpaca_eval.enabled",
    )
    difficulties: str | None = setting(
        None,
        "Difficulties of the prompts: a table of AlpacaEval's (.csv) or of write_difficulties (.json), as a path, "
        "hf://datasets/OWNER/NAME/FILE or package:NAME/FILE; null: estimated from the models of this evaluation.",
        key="statistics.alpaca_eval.difficulties",
    )

    def __post_init__(self) -> None:
        check_settings(self)
